"""What guards cost: the time a run spends in them, as a share of its updates."""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import inputs as both
from benchmarks import settings
from benchmarks.common import Facts, Spread, child, environment, interleave, say, yes
from benchmarks.results import Table
from benchmarks.settings import GUARDS, Options

REPEATS = 2
UPDATES = 20
WARM_UP = 3
ASKED = ("begin", "before_checkpoints", "judge", "taken", "turned", "before_checkpoint", "ended")
"""Where the loop turns to its guards."""


def run(options: Options, scratch: Path) -> list[Table]:
    """One run a repeat and a precision, with everything that is on by default."""
    steps = WARM_UP + options.updates(UPDATES)
    data = both.make("gsm8k", options, scratch, steps)
    rows, raw = [], {}
    for precision in options.precisions:
        say(f" {precision}")
        given = both.recipe(
            data, precision=precision, compiled=True, steps=steps, device=options.device, threads=options.threads
        )

        def measure(given: dict[str, Any] = given) -> Facts:
            return child(guarded, env=environment(options, scratch), recipe=given)

        raw[precision] = interleave({"guards": measure}, options.rounds(REPEATS))["guards"]
        rows.append(_row(precision, raw[precision]))
    notes = [
        f"{data['parameters'] / 1e6:.1f} M parameters, compiled, {settings.STEP_SAMPLES} samples an update; a run has "
        f"{steps} updates, of which the first {WARM_UP} are not counted as updates, while all of its guards' time is.",
        "In all: every call of the loop to its guards, with the looks at all weights that a run takes once or twice, "
        "however long it is. An update: the calls that each update makes, their median.",
    ]
    columns = ["precision", "update, s", "guards in all, s", "guards an update, ms", "share, %", "target %", "met"]
    return [Table("Guards", columns, rows, notes, raw)]


def _row(precision: str, found: list[Facts]) -> list[str]:
    updates = [statistics.median(f["updates"][WARM_UP:]) for f in found]
    all_of_it = [sum(sum(spent) for spent in f["guards"].values()) for f in found]
    each = [sum(statistics.median(f["guards"][name]) for name in ("judge", "taken", "turned")) for f in found]
    whole = [sum(f["updates"][WARM_UP:]) for f in found]
    share = Spread.ratio(all_of_it, whole)
    return [
        precision,
        Spread.of(updates).show(3),
        Spread.of(all_of_it).show(3),
        Spread.of([1e3 * seconds for seconds in each]).show(3),
        f"{100 * share.median:.2f} ({100 * share.low:.2f}–{100 * share.high:.2f})",
        f"{100 * (GUARDS.most or 0):g}",
        yes(GUARDS.met(share.median)),
    ]


class Updates:
    """A run's listener: takes the time of each of its updates."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def metrics(self, row: Mapping[str, Any]) -> None:
        if "loss" in row:
            self.seconds.append(row["seconds"])

    def event(self, event: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


def guarded(recipe: dict[str, Any]) -> Facts:
    """In a child: the seconds of every update, and of every call to the guards by its name."""
    from danlu import train
    from danlu.engine.guarding import Guards

    spent: dict[str, list[float]] = {name: [] for name in ASKED}

    def timed(name: str, asked: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(asked)
        def ask(*given: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return asked(*given, **named)
            finally:
                spent[name].append(time.perf_counter() - start)

        return ask

    for name in ASKED:
        setattr(Guards, name, timed(name, getattr(Guards, name)))
    updates = Updates()
    with tempfile.TemporaryDirectory() as folder:
        train(recipe, f"run.out={folder}/run", listeners=[updates])
    return {"updates": updates.seconds, "guards": spent}
