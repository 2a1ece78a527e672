"""DPO on pairs made of GSM8K: pairs a second and peak memory against `trl.DPOTrainer`."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import inputs as both
from benchmarks import settings
from benchmarks.common import Facts, MissingError, Spread, child, environment, interleave, mebibytes, say, yes
from benchmarks.results import Table, installed
from benchmarks.settings import DPO_MEMORY, DPO_SPEED_UP, Options
from benchmarks.sft import sides_are_given, trl_settings
from benchmarks.throughput import Clock

REPEATS = 2
UPDATES = 6
WARM_UP = 3
PAIRS = 8
"""Of an update."""
BETA = 0.1
OURS, REPEATED, THEIRS = "danlu, compiled", "danlu, prompt repeated", "DPOTrainer"


def run(options: Options, scratch: Path) -> list[Table]:
    """Every side in every precision."""
    if not installed("trl"):
        raise MissingError("trl is not installed")
    steps = WARM_UP + options.updates(UPDATES)
    data = both.make("gsm8k", options, scratch, 1)
    rows_file = scratch / "pairs.jsonl"
    write_pairs(rows_file, PAIRS * steps)
    env = environment(options, scratch, DANLU_CACHE=str(scratch / "tokens"))
    rows, raw = [], {}
    for precision in options.precisions:
        say(f" {precision}")
        given = sides_are_given(data, rows_file, precision, steps, options)
        ours = partial(child, danlu_side, env=env, **given)
        sides = {
            OURS: partial(ours, share_prompt=True),
            THEIRS: partial(child, trl_side, env=env, **given),
            REPEATED: partial(ours, share_prompt=False),
        }
        found = interleave(sides, options.rounds(REPEATS))
        raw[precision] = found
        rows += [_row(precision, side, found) for side in sides]
    notes = [
        f"GSM8K's questions with their answers, and another question's as the rejected one; {PAIRS} pairs an update, "
        f"{data['parameters'] / 1e6:.1f} M parameters, a frozen copy as the reference, asked at every update; "
        "activation recomputation off on all sides, the same AdamW.",
        "Pairs a second from the end of the warm-up to the end of the last update; "
        f"medians of {options.rounds(REPEATS)} repeats (least–most), ratios of each repeat.",
    ]
    columns = [
        "precision",
        "side",
        "pairs/s",
        "× trl",
        "target",
        "met",
        "peak MiB",
        "of trl's",
        "target",
        "met",
        "loss",
    ]
    return [Table("DPO against trl.DPOTrainer", columns, rows, notes, raw)]


def _row(precision: str, side: str, found: dict[str, list[Facts]]) -> list[str]:
    def speeds(of: str) -> list[float]:
        return [_speed(f) for f in found[of]]

    def memories(of: str) -> list[float]:
        return [float(f["memory"]) for f in found[of]]

    faster, share = Spread.ratio(speeds(side), speeds(THEIRS)), Spread.ratio(memories(side), memories(THEIRS))
    judged = side == OURS
    return [
        *(precision, side, Spread.of(speeds(side)).show(), faster.show()),
        *((str(DPO_SPEED_UP), yes(DPO_SPEED_UP.met(faster.median))) if judged else ("–", "–")),
        *(mebibytes(Spread.of(memories(side)).median), f"{share.median:.2f}"),
        *((str(DPO_MEMORY), yes(DPO_MEMORY.met(share.median))) if judged else ("–", "–")),
        f"{found[side][0]['losses'][0]:.4f}",
    ]


def _speed(facts: Facts) -> float:
    ends = facts["ends"]
    return float(PAIRS * (len(ends) - WARM_UP) / (ends[-1] - ends[WARM_UP - 1]))


def write_pairs(to: Path, count: int) -> None:
    """Questions with their own answer and another's."""
    lines = [json.loads(line) for line in both.gsm8k().read_text().splitlines()]
    with to.open("w") as out:
        for number, line in enumerate(lines[:count]):
            other = lines[(7 * number + 13) % len(lines)]["answer"]
            pair = {"prompt": line["question"] + "\n", "chosen": line["answer"], "rejected": other}
            out.write(json.dumps(pair) + "\n")


def danlu_side(
    model: str, rows: str, precision: str, steps: int, device: str, threads: int, share_prompt: bool
) -> Facts:
    """In a child: `danlu.train` of the built-in recipe `dpo`."""
    from danlu import train

    class Listener(Clock):
        def metrics(self, row: dict[str, Any]) -> None:
            if "loss" in row:
                self.tick()
                self.losses.append(row["loss"])

        def event(self, event: dict[str, Any]) -> None:
            pass

        def close(self) -> None:
            pass

    clock = Listener(device)
    with tempfile.TemporaryDirectory() as folder:
        overrides = {
            "model.policy": model,
            "method.beta": BETA,
            "method.share_prompt": str(share_prompt).lower(),
            "data.train": rows,
            "data.context": settings.CONTEXT,
            "data.step_samples": PAIRS,
            "optimizer.lr": settings.LEARNING_RATE,
            "optimizer.weight_decay": settings.WEIGHT_DECAY,
            "optimizer.schedule": json.dumps({"name": "constant", "warmup": 0.0}),
            "run.steps": steps,
            "run.epochs": "null",
            "run.pack_tokens": settings.PACK_TOKENS,
            "run.precision": precision,
            "run.compile": "true",
            "run.device": device,
            "run.threads": threads,
            "run.checkpoint_every": 1_000_000,
            "run.out": f"{folder}/run",
        }
        train("dpo", *(f"{key}={value}" for key, value in overrides.items()), listeners=[clock])
    return {"ends": clock.ends, "losses": clock.losses, "memory": clock.memory}


def trl_side(model: str, rows: str, precision: str, steps: int, device: str, threads: int) -> Facts:
    """In a child: `trl.DPOTrainer`, as a user calls it."""
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    torch.set_num_threads(threads)
    datasets.disable_progress_bars()
    clock = Clock(device)

    class Watch(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

        def on_log(self, *_: Any, **given: Any) -> None:
            if "loss" in given["logs"]:
                clock.losses.append(float(given["logs"]["loss"]))

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(1)
    with tempfile.TemporaryDirectory() as folder:
        arguments = DPOConfig(
            per_device_train_batch_size=PAIRS, beta=BETA, **trl_settings(folder, precision, steps, device)
        )
        trainer = DPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
            args=arguments,
            train_dataset=datasets.load_dataset("json", data_files=rows, split="train", cache_dir=folder),
            processing_class=tokenizer,
            callbacks=[Watch()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return {"ends": clock.ends, "losses": clock.losses, "memory": clock.memory}
