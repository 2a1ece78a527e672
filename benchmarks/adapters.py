"""Several adapters in one pack: what choosing per sequence costs, against one adapter for all."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import settings
from benchmarks.common import Facts, Spread, child, environment, interleave, say, yes
from benchmarks.results import Table
from benchmarks.settings import ADAPTER_SWITCHING, Options

REPEATS = {"prefill": 9, "decoding": 60}
SEQUENCES, LENGTH, ADAPTERS, RANK = 32, 64, 4, 8
NONE, ONE, MIXED = "no adapter", "one adapter", f"{ADAPTERS} adapters"


def run(options: Options, scratch: Path) -> list[Table]:
    """Every side in turn, in one process."""
    rows, raw = [], {}
    for precision in options.precisions:
        say(f" {precision}")
        found = child(
            measure,
            env=environment(options, scratch),
            shape=options.shape,
            precision=precision,
            device=options.device,
            threads=options.threads,
            repeats={work: options.rounds(usual) for work, usual in REPEATS.items()},
        )
        raw[precision] = found
        for work, sides in found.items():
            for side, seconds in sides.items():
                slower = Spread.ratio(seconds, sides[ONE])
                told = (
                    (str(ADAPTER_SWITCHING), yes(ADAPTER_SWITCHING.met(slower.median))) if side == MIXED else ("–", "–")
                )
                milliseconds = Spread.of([1e3 * s for s in seconds])
                rows.append([precision, work, side, milliseconds.show(), slower.show(), *told])
    notes = [
        f"A pack of {SEQUENCES} sequences: {LENGTH} tokens each in prefill, one each behind those in decoding; "
        f"LoRA of rank {RANK} beside every linear layer of the blocks, uncompiled.",
        "Sequences lie in the order of their adapters, as generation has them. Medians of passes in turn "
        "(least–most), ratios of each turn.",
    ]
    columns = ["precision", "work", "side", "ms", f"× {ONE}", "target", "met"]
    return [Table("Adapters in one pack", columns, rows, notes, raw)]


def measure(shape: dict[str, Any], precision: str, device: str, threads: int, repeats: dict[str, int]) -> Facts:
    """In a child: seconds of every pass, by work and side."""
    import torch

    from danlu.adapter.lora import LoRA
    from danlu.build import PRECISIONS
    from danlu.engine.device import keep_freed_memory
    from danlu.generate.cache import Cache
    from danlu.registry import lookup

    torch.set_num_threads(threads)
    keep_freed_memory()
    config = lookup("architecture", "qwen3")(**shape)
    model = config.build()
    config.initialize(model, settings.SEED)
    for number in range(ADAPTERS):
        LoRA(rank=RANK).attach(model, name=str(number), seed=number)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".B"):
                parameter.normal_(std=0.02)
    model.eval().to(device).compute_dtype = PRECISIONS[precision]
    chosen = {
        NONE: [-1] * SEQUENCES,
        ONE: [0] * SEQUENCES,
        MIXED: sorted(i % ADAPTERS for i in range(SEQUENCES)),
    }
    found: Facts = {}
    passes = {side: partial(_seconds, model, numbers, LENGTH, device) for side, numbers in chosen.items()}
    interleave(passes, 2, quiet=True)
    found["prefill"] = interleave(passes, repeats["prefill"], quiet=True)
    caches = {side: Cache() for side in chosen}
    for side, numbers in chosen.items():
        _seconds(model, numbers, LENGTH, device, caches[side])
    steps = {side: partial(_seconds, model, numbers, 1, device, caches[side]) for side, numbers in chosen.items()}
    interleave(steps, 2, quiet=True)
    found["decoding"] = interleave(steps, repeats["decoding"], quiet=True)
    return found


def _seconds(model: Any, adapters: list[int], length: int, device: str, cache: Any = None) -> float:
    """Of one pass over so many new tokens of every sequence."""
    import torch

    from danlu.generate.generator import evaluating
    from danlu.packed import ROOT, Packed
    from danlu.parts.readout import Logits

    start = 0 if cache is None else cache.length(0)
    tokens = [torch.arange(start, start + length) % model.config.vocabulary] * SEQUENCES
    packed = Packed.tree(
        tokens,
        parents=[ROOT] * SEQUENCES,
        samples=list(range(SEQUENCES)),
        positions=torch.arange(start, start + length).repeat(SEQUENCES),
        adapters=adapters,
    ).to(device)
    last = (packed.cu_seqlens[1:] - 1).to(device)
    wait = torch.accelerator.synchronize if device != "cpu" else lambda: None
    wait()
    began = time.perf_counter()
    with evaluating(model):
        model(packed, [Logits(last)], cache)
    wait()
    return time.perf_counter() - began
