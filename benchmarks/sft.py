"""Supervised fine-tuning on GSM8K: tokens a second against `trl.SFTTrainer`, packed and padded."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import inputs as both
from benchmarks import settings
from benchmarks.common import Facts, MissingError, Spread, child, environment, interleave, mebibytes, say, yes
from benchmarks.results import Table, installed
from benchmarks.settings import Options
from benchmarks.throughput import Clock

REPEATS = 3
UPDATES = 6
WARM_UP = 3
OURS, BRIDGE, EAGER = "danlu, compiled", "danlu, bridge", "danlu, eager"
PACKED, PADDED = "SFTTrainer, packing", "SFTTrainer, padded"
IGNORED = -100


def run(options: Options, scratch: Path) -> list[Table]:
    """Every side in every precision."""
    if not (installed("trl") and installed("transformers")):
        raise MissingError("trl is not installed")
    steps = WARM_UP + options.updates(UPDATES)
    data = both.make("gsm8k", options, scratch, 1)
    rows_file = scratch / "sft.jsonl"
    env = environment(options, scratch, DANLU_CACHE=str(scratch / "tokens"))
    child(write_rows, env=env, model=data["model"], to=str(rows_file))
    rows, raw = [], {}
    for precision in options.precisions:
        say(f" {precision}")
        given = sides_are_given(data, rows_file, precision, steps, options)
        ours, theirs = partial(child, danlu_side, env=env, **given), partial(child, trl_side, env=env, **given)
        sides = {
            OURS: partial(ours, compiled=True, bridge=False),
            PACKED: partial(theirs, packing=True),
            BRIDGE: partial(ours, compiled=False, bridge=True),
            PADDED: partial(theirs, packing=False),
            EAGER: partial(ours, compiled=False, bridge=False),
        }
        found = interleave(sides, options.rounds(REPEATS))
        raw[precision] = found
        rows += [_row(precision, side, found) for side in sides]
    notes = [
        "GSM8K, token ids made beforehand and the same on all sides; prompts are no targets; "
        f"{data['parameters'] / 1e6:.1f} M parameters; activation recomputation off on all sides, the same AdamW.",
        f"About {settings.PACK_TOKENS} tokens an update: '{PACKED}' by {settings.PACK_TOKENS // settings.CONTEXT} "
        f"sequences of {settings.CONTEXT}, '{PADDED}' by {settings.STEP_SAMPLES} samples.",
        "Tokens are real ones, padding is none: a second's, from the end of the warm-up to the end of the last update; "
        f"medians of {options.rounds(REPEATS)} repeats (least–most), ratios of each repeat.",
        f"'{BRIDGE}' runs transformers' own Qwen3 through its attention interface, uncompiled.",
    ]
    columns = ["precision", "side", "tokens/s", "× packing", "target", "met", "× padded", "target", "met", "peak MiB"]
    return [
        Table("Supervised fine-tuning against trl.SFTTrainer", [*columns, "first loss", "last loss"], rows, notes, raw)
    ]


def sides_are_given(data: Facts, rows: Path, precision: str, steps: int, options: Options) -> Facts:
    """What both sides of a comparison with `trl` start from."""
    return {
        "model": data["model"],
        "rows": str(rows),
        "precision": precision,
        "steps": steps,
        "device": options.device,
        "threads": options.threads,
    }


def _row(precision: str, side: str, found: dict[str, list[Facts]]) -> list[str]:
    def speeds(of: str) -> list[float]:
        return [speed(f) for f in found[of]]

    over = {peer: Spread.ratio(speeds(side), speeds(peer)) for peer in (PACKED, PADDED)}
    cells = []
    for peer in (PACKED, PADDED):
        target = settings.SFT_SPEED_UP.get((side, peer))
        cells += [over[peer].show(), *((str(target), yes(target.met(over[peer].median))) if target else ("–", "–"))]
    memory = Spread.of([float(f["memory"]) for f in found[side]]).median
    losses = found[side][0]["losses"]
    return [
        precision,
        side,
        Spread.of(speeds(side)).show(0),
        *cells,
        mebibytes(memory),
        f"{losses[0]:.4f}",
        f"{losses[-1]:.4f}",
    ]


def speed(facts: Facts) -> float:
    """Tokens a second behind the warm-up."""
    return float(sum(facts["tokens"][WARM_UP:])) / (facts["ends"][-1] - facts["ends"][WARM_UP - 1])


def write_rows(model: str, to: str) -> Facts:
    """In a child: GSM8K as token ids with labels, in the hub's convention."""
    from danlu.data import Tokenizer

    tokenizer = Tokenizer.load(model)
    with Path(to).open("w") as out:
        for line in both.gsm8k().read_text().splitlines():
            row = json.loads(line)
            prompt = [tokenizer.bos_id, *tokenizer.encode(row["question"] + "\n").tolist()]
            answer = [*tokenizer.encode(row["answer"]).tolist(), tokenizer.eos_id]
            if len(prompt) + len(answer) <= settings.CONTEXT:
                labels = [IGNORED] * len(prompt) + answer
                out.write(json.dumps({"input_ids": prompt + answer, "labels": labels}) + "\n")
    return {}


def danlu_side(
    model: str,
    rows: str,
    precision: str,
    steps: int,
    device: str,
    threads: int,
    compiled: bool,
    bridge: bool,
    adapter: Mapping[str, Any] | None = None,
) -> Facts:
    """In a child: `danlu.train` of the built-in recipe `sft`."""
    from danlu import train

    class Listener(Clock):
        def __init__(self) -> None:
            super().__init__(device)
            self.tokens: list[int] = []

        def metrics(self, row: Mapping[str, Any]) -> None:
            if "loss" in row:
                self.tick()
                self.losses.append(row["loss"])
                self.tokens.append(row["tokens"])

        def event(self, event: Mapping[str, Any]) -> None:
            pass

        def close(self) -> None:
            pass

    clock = Listener()
    with tempfile.TemporaryDirectory() as folder:
        overrides = {
            "model": json.dumps({"path": model, "bridge": bridge}),
            "adapter": json.dumps(adapter),
            "data.train": rows,
            "data.context": settings.CONTEXT,
            "data.step_samples": "null",
            "data.step_tokens": settings.PACK_TOKENS,
            "optimizer.lr": settings.LEARNING_RATE,
            "optimizer.schedule": json.dumps({"name": "constant", "warmup": 0.0}),
            "run.steps": steps,
            "run.precision": precision,
            "run.compile": str(compiled).lower(),
            "run.device": device,
            "run.threads": threads,
            "run.checkpoint_every": 1_000_000,
            "run.out": f"{folder}/run",
        }
        train("sft", *(f"{key}={value}" for key, value in overrides.items()), listeners=[clock])
    return _facts(clock, clock.tokens)


def trl_side(
    model: str,
    rows: str,
    precision: str,
    steps: int,
    device: str,
    threads: int,
    packing: bool,
    lora: Mapping[str, Any] | None = None,
) -> Facts:
    """In a child: `trl.SFTTrainer`, as a user calls it, with a LoRA of `peft` where one is asked for."""
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(threads)
    datasets.disable_progress_bars()
    clock, totals = Clock(device), [0]

    class Watch(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick()

        def on_log(self, *_: Any, **given: Any) -> None:
            if "loss" in given["logs"]:
                clock.losses.append(float(given["logs"]["loss"]))
                totals.append(int(given["logs"]["num_tokens"]))

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(1)
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            per_device_train_batch_size=settings.PACK_TOKENS // settings.CONTEXT if packing else settings.STEP_SAMPLES,
            packing=packing,
            **trl_settings(folder, precision, steps, device),
        )
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
            args=arguments,
            train_dataset=datasets.load_dataset("json", data_files=rows, split="train", cache_dir=folder),
            processing_class=tokenizer,
            callbacks=[Watch()],
            peft_config=None if lora is None else _lora(lora),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return _facts(clock, [after - before for before, after in pairwise(totals)])


def trl_settings(folder: str, precision: str, steps: int, device: str) -> Facts:
    """What every trainer of `trl` is given, so that it does what Danlu does."""
    return {
        "output_dir": folder,
        "max_steps": steps,
        "max_length": settings.CONTEXT,
        "gradient_checkpointing": False,
        "learning_rate": settings.LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": settings.WEIGHT_DECAY,
        "bf16": precision == "bf16",
        "use_cpu": device == "cpu",
        "seed": settings.SEED,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _lora(fields: Mapping[str, Any]) -> Any:
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", **fields)


def _facts(clock: Clock, tokens: list[int]) -> Facts:
    start = clock.ends[0] if clock.ends else math.nan
    return {
        "ends": [end - start for end in clock.ends],
        "tokens": tokens,
        "losses": clock.losses,
        "memory": clock.memory,
    }
