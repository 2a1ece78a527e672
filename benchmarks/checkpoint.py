"""How long a checkpoint holds up a run that goes on while it is written."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import inputs, settings
from benchmarks.common import Facts, Spread, child, environment, interleave, mebibytes, say, yes
from benchmarks.results import Table
from benchmarks.settings import CHECKPOINT_STALL, Options

REPEATS = 12
WARM_UP = 2
WINDOW = 2
"""Updates that are timed together: a checkpoint is there before they are over."""
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
        f"A window is {WINDOW} updates, with a checkpoint begun before the first or without. The stall is what it "
        "takes longer than its neighbour without, in percent of an update's time. So it holds copying to host memory, "
        "and what writing, checksums and the disk take from the updates meanwhile.",
        f"'{BLOCKING}' is the same with nothing done until it is on disk.",
    ]
    columns = [
        "precision",
        "checkpoint",
        "MiB",
        "update, s",
        "copied, ms",
        "on disk after, s",
        "stall",
        "target",
        "met",
    ]
    return [Table("What a checkpoint costs a run", columns, rows, notes, raw)]


def _row(precision: str, side: str, found: Facts) -> list[str]:
    without, seconds = found["seconds"][NONE], found["seconds"][side]
    update = statistics.median(without) / WINDOW
    stall = Spread.of([100 * (b - a) / (a / WINDOW) for a, b in zip(without, seconds, strict=True)])
    copied, written = Spread.of([1e3 * s for s in found["staged"][side]]), Spread.of(found["written"][side])
    return [
        *(precision, side, mebibytes(found["bytes"]), f"{update:.2f}"),
        *(copied.show(0), written.show(), f"{stall.show(1)} %"),
        *((str(CHECKPOINT_STALL), yes(CHECKPOINT_STALL.met(stall.median))) if side == ASIDE else ("–", "–")),
    ]


def measure(recipe: dict[str, Any], repeats: int, folder: str) -> Facts:
    """In a child: seconds of windows of updates, of each side in turn, and what the checkpoints said of themselves."""
    from danlu.build import assemble
    from danlu.engine.checkpoint import Checkpoints
    from danlu.engine.device import keep_freed_memory
    from danlu.engine.staging import Snapshot
    from danlu.engine.state import optimizer_tensors
    from danlu.parts.compiled import compilation
    from danlu.recipe import load_recipe

    keep_freed_memory()  # as `danlu.train` does
    with compilation(True), tempfile.TemporaryDirectory(dir=folder) as home:
        experiment = assemble(load_recipe(recipe))
        updater, policy = experiment.updater(), experiment.policy
        checkpoints, groups = Checkpoints(Path(home)), updater.groups(experiment.source.draw())
        saves = 0

        def save() -> Snapshot:
            nonlocal saves
            saves += 1
            model, optimizer = dict(policy.named_parameters()), optimizer_tensors(updater.optimizer, policy)
            snapshot = Snapshot(saves, {"model": model, "optimizer": optimizer}, {"step": saves})
            checkpoints.save(snapshot, best=False, keep=2)
            return snapshot

        def update() -> None:
            updater.gradient(groups, 0)
            updater.clip()
            updater.move(settings.LEARNING_RATE)
            experiment.device.synchronize()

        def window(before: Callable[[], Any]) -> float:
            start = time.perf_counter()
            before()
            for _ in range(WINDOW):
                update()
            seconds = time.perf_counter() - start
            checkpoints.wait()
            return seconds

        sides: dict[str, Callable[[], float]] = {
            NONE: lambda: window(lambda: None),
            ASIDE: lambda: window(save),
            BLOCKING: lambda: window(lambda: (save(), checkpoints.wait())),
        }
        for _ in range(WARM_UP):
            update()
        interleave(sides, 1, quiet=True)  # memory for the copy is touched once
        num_bytes = save().num_bytes
        checkpoints.wait()
        checkpoints.finished()
        found = interleave(sides, repeats, quiet=True)
        told = checkpoints.finished()
        experiment.close()
    written = {ASIDE: told[0::2], BLOCKING: told[1::2]}
    return {
        "bytes": num_bytes,
        "seconds": found,
        "staged": {side: [each.staged_seconds for each in these] for side, these in written.items()},
        "written": {side: [each.written_seconds for each in these] for side, these in written.items()},
    }
