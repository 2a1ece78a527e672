"""Real tokens a second and peak memory, against `transformers.Trainer` with dynamic padding."""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import inputs as both
from benchmarks import settings
from benchmarks.common import (
    Facts,
    MissingError,
    Spread,
    TooSlowError,
    child,
    environment,
    interleave,
    mebibytes,
    say,
    yes,
)
from benchmarks.results import Table, installed
from benchmarks.settings import Options

REPEATS = 3
UPDATES = {"gsm8k": 10, "log-normal": 6}
WARM_UP = 3
"""Updates that are not timed: a compiler may need a second look at sizes before it takes them as varying."""
COMPILED_PEER_PATIENCE = 1200.0
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
"""Has glibc keep freed memory, as Danlu asks of it by itself."""

OURS, EAGER, PEER = "danlu, compiled", "danlu, eager", "Trainer"
PEER_KEPT, PEER_COMPILED = "Trainer, glibc keeps memory", "Trainer, torch_compile"


def run(options: Options, scratch: Path) -> list[Table]:
    """GSM8K in every precision."""
    return compare("gsm8k", options, scratch)


def compare(kind: str, options: Options, scratch: Path) -> list[Table]:
    """A data set in every precision."""
    if not (installed("transformers") and installed("accelerate")):
        raise MissingError("transformers and accelerate are not installed")
    rows: list[list[str]] = []
    raw: dict[str, Any] = {}
    notes = [
        f"{settings.STEP_SAMPLES} samples an update on both sides, in the same order, from the same weights; "
        f"{WARM_UP} updates warm up, then the wall time from update to update counts.",
        f"'{OURS}' is what counts; tokens are targets, so padding is none. medians of "
        f"{options.rounds(REPEATS)} repeats (least–most), ratios of each repeat.",
        "Memory on a CPU is the process's peak resident set (GPU: allocated) up to the last update, warm-up included.",
        "'first update' holds compilation; it is the longest of the repeats, whose first has an empty compiler cache.",
    ]
    sound = True
    steps = WARM_UP + options.updates(UPDATES[kind])
    data = both.make(kind, options, scratch, steps)
    notes.append(_describe(kind, data))
    for precision in options.precisions:
        say(f" {kind}, {precision}")
        found = _measure(data, precision, steps, options, scratch)
        apart = abs(found[OURS][0]["losses"][0] - found[PEER][0]["losses"][0])
        if not apart <= settings.SAME_LOSS:
            sound = False
            notes.append(f"**Void** ({precision}): the losses at the first update differ by {apart:.1e}.")
        measured = [_row(kind, precision, side, found) for side in found]
        for row in measured:
            say("  " + " | ".join(row))
        rows += measured
        raw[f"{kind} {precision}"] = found
    columns = ["data", "precision", "side", "tokens/s", "× Trainer", "target", "met", "peak MiB", "of Trainer's"]
    columns += ["target", "met", "first update s", "loss at 1", "last loss"]
    return [Table(f"Throughput and memory against transformers.Trainer, {kind}", columns, rows, notes, raw, sound)]


def _measure(data: Facts, precision: str, steps: int, options: Options, scratch: Path) -> dict[str, list[Facts]]:
    """Every side, interleaved; those that are for information once, after the others."""
    given: dict[str, Any] = {
        "data": data,
        "precision": precision,
        "steps": steps,
        "device": options.device,
        "threads": options.threads,
    }
    cache = tempfile.mkdtemp(dir=scratch)  # the compiler's: empty for the first repeat of each comparison
    env = environment(options, scratch, TORCHINDUCTOR_CACHE_DIR=cache)
    ours, theirs = partial(child, danlu_side, **given), partial(child, trainer_side, **given)
    counted = {
        OURS: partial(ours, env=env, compiled=True),
        PEER: partial(theirs, env=env, compiled=False),
        EAGER: partial(ours, env=env, compiled=False),
    }
    found = interleave(counted, options.rounds(REPEATS))
    if options.everything:
        found |= interleave({PEER_KEPT: partial(theirs, env=env | KEPT, compiled=False)}, 1)
        compiled_peer = partial(theirs, env=env, patience=COMPILED_PEER_PATIENCE, compiled=True)
        try:
            found |= interleave({PEER_COMPILED: compiled_peer}, 1)
        except (TooSlowError, RuntimeError) as reason:
            say(f"  {PEER_COMPILED}: {reason}")
            found[PEER_COMPILED] = []
    return found


def _describe(kind: str, data: Facts) -> str:
    samples = json.loads(Path(data["samples"]).read_text())
    size = settings.STEP_SAMPLES
    steps = [[len(s) for s in samples[i : i + size]] for i in range(0, len(samples), size)]
    real, padded = sum(map(sum, steps)), sum(max(step) * len(step) for step in steps)
    return (
        f"{kind}: {data['parameters'] / 1e6:.1f} M parameters, {real / len(steps):,.0f} tokens an update, "
        f"{padded / real:.2f} times that with dynamic padding."
    )


def _speed(facts: Facts) -> float:
    """Targets a second, from the end of the warm-up to the end of the last update."""
    seconds = facts["ends"][-1] - facts["ends"][WARM_UP - 1]
    return float(sum(facts["targets"][WARM_UP:])) / seconds


def _row(kind: str, precision: str, side: str, found: dict[str, list[Facts]]) -> list[str]:
    mine, theirs = found[side], found[PEER]
    if not mine:
        return [kind, precision, side, "no result", *["–"] * 10]
    speeds, memory = [_speed(f) for f in mine], [float(f["memory"]) for f in mine]
    peer = theirs[: len(mine)]
    faster = Spread.ratio(speeds, [_speed(f) for f in peer])
    smaller = Spread.ratio(memory, [float(f["memory"]) for f in peer])
    fast, small = settings.SPEED_UP[kind], settings.MEMORY
    counts = side == OURS
    return [
        *(kind, precision, side, Spread.of(speeds).show(0)),
        *(
            ("1", "–", "–")
            if side == PEER
            else (faster.show(), str(fast) if counts else "–", _met(fast, faster, counts))
        ),
        mebibytes(Spread.of(memory).median),
        *(
            ("1", "–", "–")
            if side == PEER
            else (smaller.show(), str(small) if counts else "–", _met(small, smaller, counts))
        ),
        f"{max(f['first'] for f in mine):.1f}",
        f"{mine[0]['losses'][0]:.4f}",
        f"{mine[0]['losses'][-1]:.4f}",
    ]


def _met(target: settings.Target, figure: Spread, counts: bool) -> str:
    return yes(target.met(figure.median)) if counts else "–"


class Clock:
    """When each update ended, the most memory until then, and the losses."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.memory = 0

    def tick(self) -> None:
        """An update has ended."""
        import torch

        on_cpu = self.device == "cpu"
        if not on_cpu:
            torch.accelerator.synchronize()
        self.ends.append(time.perf_counter())
        self.memory = _peak_resident() if on_cpu else torch.get_device_module(self.device).max_memory_allocated()

    def facts(self, first: float, data: Facts) -> Facts:
        """As JSON."""
        samples = json.loads(Path(data["samples"]).read_text())
        counts = [len(sample) - 1 for sample in samples]
        size = settings.STEP_SAMPLES
        return {
            "ends": [end - self.ends[0] for end in self.ends],
            "targets": [sum(counts[i * size : (i + 1) * size]) for i in range(len(self.ends))],
            "losses": self.losses,
            "memory": self.memory,
            "first": first,
        }


def _peak_resident() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def danlu_side(data: Facts, precision: str, steps: int, device: str, threads: int, compiled: bool) -> Facts:
    """In a child: `danlu.train`, as a user calls it."""
    from danlu import train

    class Listener(Clock):
        first = math.nan

        def metrics(self, row: Mapping[str, Any]) -> None:
            if "loss" in row:
                self.tick()
                self.losses.append(row["loss"])
                self.first = row["seconds"] if len(self.ends) == 1 else self.first

        def event(self, event: Mapping[str, Any]) -> None:
            pass

        def close(self) -> None:
            pass

    clock = Listener(device)
    recipe = both.recipe(data, precision=precision, compiled=compiled, steps=steps, device=device, threads=threads)
    with tempfile.TemporaryDirectory() as folder:
        recipe["run"]["out"] = f"{folder}/run"
        train(recipe, listeners=[clock])
    return clock.facts(clock.first, data)


def trainer_side(data: Facts, precision: str, steps: int, device: str, threads: int, compiled: bool) -> Facts:
    """In a child: `transformers.Trainer`, as a user calls it."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        PrinterCallback,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    torch.set_num_threads(threads)
    clock = Clock(device)
    begins: list[float] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            begins.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

        def on_log(self, *_: Any, **given: Any) -> None:
            if "loss" in given["logs"]:
                clock.losses.append(float(given["logs"]["loss"]))

    model = AutoModelForCausalLM.from_pretrained(data["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(data["model"])
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)  # masked, and no target
    samples = json.loads(Path(data["samples"]).read_text())
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=settings.STEP_SAMPLES,
            gradient_accumulation_steps=1,
            train_sampling_strategy="sequential",
            learning_rate=settings.LEARNING_RATE,
            lr_scheduler_type="constant",
            adam_beta1=settings.BETAS[0],
            adam_beta2=settings.BETAS[1],
            adam_epsilon=settings.EPSILON,
            weight_decay=settings.WEIGHT_DECAY,
            max_grad_norm=settings.CLIP_NORM,
            bf16=precision == "bf16",
            torch_compile=compiled,
            use_cpu=device == "cpu",
            seed=settings.SEED,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=[{"input_ids": ids, "labels": ids} for ids in samples],
            data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
            callbacks=[Watch()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.facts(clock.ends[0] - begins[0], data)
