"""LoRA on GSM8K: tokens a second against `trl.SFTTrainer` with `peft`, and against training all of the model."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from benchmarks import inputs as both
from benchmarks import settings
from benchmarks.common import Facts, MissingError, Spread, child, environment, interleave, mebibytes, say, yes
from benchmarks.results import Table, installed
from benchmarks.settings import LORA_BOUND, LORA_SPEED_UP, Options
from benchmarks.sft import IGNORED, WARM_UP, danlu_side, sides_are_given, speed, trl_side, write_rows

REPEATS = 3
UPDATES = 6
OURS, WHOLE = "danlu LoRA, compiled", "danlu, all weights, compiled"
PACKED, PADDED = "SFTTrainer + peft, packing", "SFTTrainer + peft, padded"
RANK, ALPHA = 8, 16


def run(options: Options, scratch: Path) -> list[Table]:
    """Every side in every precision."""
    if not (installed("trl") and installed("peft")):
        raise MissingError("trl or peft is not installed")
    steps = WARM_UP + options.updates(UPDATES)
    data = both.make("gsm8k", options, scratch, 1)
    rows_file = scratch / "lora.jsonl"
    env = environment(options, scratch, DANLU_CACHE=str(scratch / "tokens"))
    child(write_rows, env=env, model=data["model"], to=str(rows_file))
    bound: float = child(work, env=env, model=data["model"], rows=str(rows_file))["share"]
    rows, raw = [], {}
    for precision in options.precisions:
        say(f" {precision}")
        given = sides_are_given(data, rows_file, precision, steps, options)
        ours = partial(child, danlu_side, env=env, compiled=True, bridge=False, **given)
        lora = {"r": RANK, "lora_alpha": ALPHA, "target_modules": "all-linear"}
        theirs = partial(child, trl_side, env=env, lora=lora, **given)
        sides = {
            OURS: partial(ours, adapter={"name": "lora", "rank": RANK, "alpha": ALPHA}),
            PACKED: partial(theirs, packing=True),
            WHOLE: ours,
            PADDED: partial(theirs, packing=False),
        }
        found = interleave(sides, options.rounds(REPEATS))
        raw[precision] = found
        rows += [_row(precision, side, found, bound) for side in sides]
    notes = [
        f"GSM8K as in supervised fine-tuning; LoRA of rank {RANK} beside every linear layer of the blocks; "
        "activation recomputation off on all sides.",
        f"The bound is that of matrix products: a pass of LoRA has {bound:.2f} of those of training "
        "all weights, since no frozen weight has a gradient. 'of the bound' is the tokens a second over those of "
        f"'{WHOLE}', times that.",
        f"Medians of {options.rounds(REPEATS)} repeats (least–most), ratios of each repeat.",
    ]
    columns = [
        *("precision", "side", "tokens/s", "× packing", "target", "met", "× padded", "of the bound", "target", "met"),
        "peak MiB",
    ]
    return [Table("LoRA against trl.SFTTrainer with peft", columns, rows, notes, raw)]


def work(model: str, rows: str) -> Facts:
    """In a child: the matrix products of a LoRA's update, as a share of those of training all weights."""
    import torch

    from danlu.architecture.checkpoint import load_model
    from danlu.packed import ROOT, Packed

    lines = [json.loads(line) for line in Path(rows).read_text().splitlines()[: settings.STEP_SAMPLES * 8]]
    lengths = [len(line["input_ids"]) - 1 for line in lines]
    targets = sum(label != IGNORED for line in lines for label in line["labels"])
    network = load_model(model)
    packed = Packed.tree([torch.zeros(n, dtype=torch.int64) for n in lengths], parents=[ROOT] * len(lengths))
    matrices = [p for block in network.blocks for p in block.parameters() if p.dim() == 2]
    linear = 2 * len(packed) * sum(p.numel() for p in matrices)
    low = 2 * len(packed) * RANK * sum(sum(p.shape) for p in matrices)
    head = network.flops(packed, targets) - network.flops(packed, 0)
    forward = network.flops(packed, targets)
    attention = forward - linear - head
    return {"share": (2 * (linear + head) + 3 * (attention + low)) / (3 * forward)}


def _row(precision: str, side: str, found: dict[str, list[Facts]], bound: float) -> list[str]:
    def speeds(of: str) -> list[float]:
        return [speed(f) for f in found[of]]

    packing, padded = (Spread.ratio(speeds(side), speeds(peer)) for peer in (PACKED, PADDED))
    share = Spread.ratio([bound * s for s in speeds(side)], speeds(WHOLE))
    ours = side == OURS
    return [
        *(precision, side, Spread.of(speeds(side)).show(0), packing.show()),
        *((str(LORA_SPEED_UP), yes(LORA_SPEED_UP.met(packing.median))) if ours else ("–", "–")),
        padded.show(),
        *((share.show(), str(LORA_BOUND), yes(LORA_BOUND.met(share.median))) if ours else ("–", "–", "–")),
        mebibytes(Spread.of([float(f["memory"]) for f in found[side]]).median),
    ]
