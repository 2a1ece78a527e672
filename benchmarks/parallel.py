"""Real tokens a second of several ranks of one core each, against one process of all cores."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import inputs, settings
from benchmarks.common import PATIENCE, Facts, Spread, environment, interleave, mebibytes, say
from benchmarks.results import Table
from benchmarks.settings import Options

REPEATS = 3
UPDATES = 10
WARM_UP = 3
MODES = ("ddp", "zero1", "zero2", "zero3")
ALONE = "one process"


def run(options: Options, scratch: Path) -> list[Table]:
    """GSM8K, every mode."""
    steps = WARM_UP + options.updates(UPDATES)
    data = inputs.make("gsm8k", options, scratch, steps)
    rows: list[list[str]] = []
    raw: dict[str, Any] = {}
    sound = True
    notes = [
        f"{data['parameters'] / 1e6:.1f} M parameters, GSM8K, {settings.STEP_SAMPLES} samples an update, which is the "
        f"same on all sides; compiled blocks; {options.threads} cores in all, by gloo.",
        f"Tokens of {steps - WARM_UP} updates over their time, {WARM_UP} before them not counted; medians of "
        f"{options.rounds(REPEATS)} repeats (least–most), ratios of each repeat. Memory is rank 0's largest.",
    ]
    for precision in options.precisions:
        say(f" {precision}")
        recipe = inputs.recipe(
            data, precision=precision, compiled=True, steps=steps, device=options.device, threads=None
        )
        sides = {ALONE: partial(measure, recipe, 1, "none", options, scratch)}
        sides |= {mode: partial(measure, recipe, options.threads, mode, options, scratch) for mode in MODES}
        found = interleave(sides, options.rounds(REPEATS))
        apart = max(abs(side[0]["last"] - found[ALONE][0]["last"]) for side in found.values())
        if not apart <= settings.SAME_LOSS:
            sound = False
            notes.append(f"**Void** ({precision}): the losses at the last update differ by {apart:.1e}.")
        for side, each in found.items():
            speeds = [one["speed"] for one in each]
            ratio = Spread.ratio(speeds, [one["speed"] for one in found[ALONE]])
            memory = Spread.of([one["memory"] for one in each]).median
            row = [precision, side, Spread.of(speeds).show(0), "1" if side == ALONE else ratio.show()]
            rows.append([*row, mebibytes(memory), f"{each[0]['last']:.4f}"])
            say("  " + " | ".join(rows[-1]))
        raw[precision] = found
    columns = ["precision", "side", "tokens/s", "× one process", "peak MiB a rank", "last loss"]
    return [Table(f"{options.threads} ranks against one process", columns, rows, notes, raw, sound)]


def measure(recipe: dict[str, Any], ranks: int, mode: str, options: Options, scratch: Path) -> Facts:
    """A run as a user starts it; its speed after the warm-up, the memory of rank 0, the last loss."""
    threads = options.threads // ranks
    with tempfile.TemporaryDirectory() as folder:
        out, file = Path(folder, "run"), Path(folder, "recipe.json")
        settled = recipe["run"] | {"out": str(out), "parallel": mode if ranks > 1 else "auto", "threads": threads}
        file.write_text(json.dumps({**recipe, "run": settled}))
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
        command = [sys.executable, *launch, "-m", "danlu", "train", str(file)]
        env = environment(options, scratch, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False)
        if done.returncode:
            raise RuntimeError(f"{mode} failed:\n{done.stderr[-3000:]}")
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    updates = [row for row in rows if "loss" in row]
    counted = updates[WARM_UP:]
    return {
        "speed": sum(row["tokens"] for row in counted) / sum(row["seconds"] for row in counted),
        "memory": updates[-1]["memory_bytes"],
        "last": updates[-1]["loss"],
    }
