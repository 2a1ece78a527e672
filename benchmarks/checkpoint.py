"""How long a checkpoint holds up a run that goes on while it is written."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import inputs, settings
from benchmarks.common import Facts, Spread, child, environment, interleave, mebibytes, say, yes
from benchmarks.results import Table
from benchmarks.settings import CHECKPOINT_STALL, Options
from benchmarks.updates import compiled, update

if TYPE_CHECKING:
    from danlu.engine.checkpoint import Written
    from danlu.experiment import Experiment

REPEATS = 6
WARM_UP = 2
WINDOW = 14.0
"""Seconds of updates that are timed together, at least two."""
NONE, ASIDE, BLOCKING = "no checkpoint", "written meanwhile", "waited for"


def run(options: Options, scratch: Path) -> list[Table]:
    """Each precision in a process of its own."""
    data = inputs.make("log-normal", options, scratch, 1)
    rows, raw = [], {}
    for precision in options.precisions:
        say(f" {precision}")
        made = {"precision": precision, "compiled": True, "steps": 1}
        recipe = inputs.recipe(data, **made, device=options.device, threads=options.threads)
        env = environment(options, scratch)
        found = child(measure, env=env, recipe=recipe, repeats=options.rounds(REPEATS), folder=str(scratch))
        raw[precision] = found
        rows += [_row(precision, side, found) for side in (ASIDE, BLOCKING)]
    notes = [
        f"{data['parameters'] / 1e6:.1f} M parameters and AdamW's averages in float32; compiled updates, all on the "
        f"same {settings.STEP_SAMPLES} documents; medians of {options.rounds(REPEATS)} repeats (least–most).",
        "The stall is how long the run waits for a checkpoint: until its copy in host memory is complete.",
        "Busy is the processor time of the thread that writes, at the lowest priority. Where updates leave no core "
        "idle, it is taken from them in the end, spread over all cores. 'Slower meanwhile' is how much longer a window "
        f"of about {WINDOW:.0f} s of updates with a checkpoint takes than one without, as noisy as two windows are.",
        f"'{BLOCKING}' is the same with nothing done until it is on disk.",
    ]
    columns = [
        *("precision", "checkpoint", "MiB", "update, s", "waits, ms", "stall", "target", "met"),
        *("busy, s", "on disk after, s", "slower meanwhile"),
    ]
    return [Table("What a checkpoint costs a run", columns, rows, notes, raw)]


def _row(precision: str, side: str, found: Facts) -> list[str]:
    without, seconds = found["seconds"][NONE], found["seconds"][side]
    update = statistics.median(without) / found["updates"]
    waits = (
        found["staged"][side]
        if side == ASIDE
        else [a + b for a, b in zip(found["staged"][side], found["written"][side], strict=True)]
    )
    stall = Spread.of([100 * wait / update for wait in waits])
    slower = Spread.of([100 * (b / a - 1) for a, b in zip(without, seconds, strict=True)])
    return [
        *(precision, side, mebibytes(found["bytes"]), f"{update:.2f}", Spread.of([1e3 * s for s in waits]).show(0)),
        f"{stall.show(1)} %",
        *((str(CHECKPOINT_STALL), yes(CHECKPOINT_STALL.met(stall.median))) if side == ASIDE else ("–", "–")),
        Spread.of(found["busy"][side]).show(),
        Spread.of(found["written"][side]).show(),
        f"{slower.show(1)} %",
    ]


def measure(recipe: dict[str, Any], repeats: int, folder: str) -> Facts:
    """In a child: seconds of windows of updates, of each side in turn, and what the checkpoints said of themselves."""
    with compiled(recipe) as experiment, tempfile.TemporaryDirectory(dir=folder) as home:
        trial = _Trial(experiment, Path(home))
        trial.window(WARM_UP)
        num_bytes = trial.save()
        updates = max(2, math.ceil(WINDOW / (trial.window(2) / 2)))
        sides: dict[str, Callable[[], float]] = {
            NONE: lambda: trial.window(updates),
            ASIDE: lambda: trial.window(updates, trial.save),
            BLOCKING: lambda: trial.window(updates, trial.save, trial.checkpoints.wait),
        }
        trial.told.clear()
        found = interleave(sides, repeats, quiet=True)
    written = {ASIDE: trial.told[0::2], BLOCKING: trial.told[1::2]}
    return {
        "bytes": num_bytes,
        "updates": updates,
        "seconds": found,
        "staged": {side: [each.staged_seconds for each in these] for side, these in written.items()},
        "written": {side: [each.written_seconds for each in these] for side, these in written.items()},
        "busy": {side: [each.busy_seconds for each in these] for side, these in written.items()},
    }


class _Trial:
    """A run's updates and checkpoints, without the rest of it."""

    def __init__(self, experiment: Experiment, folder: Path) -> None:
        from danlu.engine.checkpoint import Checkpoints

        self.experiment, self.updater = experiment, experiment.updater()
        self.groups = self.updater.groups(experiment.source.draw())
        self.checkpoints = Checkpoints(folder)
        self.saves = 0
        self.told: list[Written] = []

    def window(self, updates: int, *before: Callable[[], Any]) -> float:
        """Seconds of these, and of so many updates."""
        start = time.perf_counter()
        for act in before:
            act()
        for _ in range(updates):
            update(self.updater, self.groups)
            self.experiment.device.synchronize()
        seconds = time.perf_counter() - start
        self.checkpoints.wait()
        self.told += self.checkpoints.finished()
        return seconds

    def save(self) -> int:
        """As the loop does; its bytes."""
        from danlu.engine.staging import Snapshot
        from danlu.engine.state import optimizer_tensors

        self.saves += 1
        policy = self.experiment.policy
        averages = optimizer_tensors(self.updater.optimizer, policy)
        tensors = {"model": dict(policy.named_parameters()), "optimizer": averages}
        snapshot = Snapshot(self.saves, tensors, {"step": self.saves})
        self.checkpoints.save(snapshot, best=False, keep=2)
        return snapshot.num_bytes
