"""What guards cost: the same run with them and without, update by update in turn."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import inputs as both
from benchmarks import settings
from benchmarks.common import Facts, Spread, child, environment, interleave, say, yes
from benchmarks.results import Table
from benchmarks.settings import GUARDS, Options

REPEATS = 3
UPDATES = 20
WARM_UP = 3
ON, OFF = "guards on", "guards off"
SIDES = {ON: (), OFF: ("run.guards.spike=ignore", "run.guards.unmoved_after=null", "run.guards.same_weights=false")}
"""Everything that can be switched off; that nothing moves by a gradient that is not finite cannot."""


def run(options: Options, scratch: Path) -> list[Table]:
    """Two runs of one process, each waiting for the other after every update."""
    steps = WARM_UP + options.updates(UPDATES)
    data = both.make("gsm8k", options, scratch, steps)
    rows, raw = [], {}
    for precision in options.precisions:
        say(f" {precision}")
        given = both.recipe(
            data, precision=precision, compiled=False, steps=steps, device=options.device, threads=options.threads
        )

        def measure(first: str, given: dict[str, Any] = given) -> Facts:
            order = [first, *(side for side in SIDES if side != first)]
            return child(in_turn, env=environment(options, scratch), recipe=given, order=order)

        raw[precision] = interleave({side: partial(measure, side) for side in SIDES}, options.rounds(REPEATS))
        rows.append(_row(precision, raw[precision]))
    notes = [
        f"{data['parameters'] / 1e6:.1f} M parameters, uncompiled, {settings.STEP_SAMPLES} samples an update; "
        f"{WARM_UP} updates warm up, then {steps - WARM_UP} count, from the end of one to the end of the next.",
        "Both runs are threads of one process that take turns, so what the machine does besides falls on both alike; "
        "a repeat is two such processes, in each of which another side goes first.",
        "Means of all updates, those included in which guards look at all weights.",
    ]
    columns = ["precision", *(f"{side}, s" for side in SIDES), "more, %", "target %", "met"]
    return [Table("Guards", columns, rows, notes, raw)]


def _row(precision: str, found: dict[str, list[Facts]]) -> list[str]:
    """Of the processes by which side went first, and each one's seconds of every update by side."""
    repeats = list(zip(*found.values(), strict=True))
    seconds = {
        side: [statistics.fmean(s for f in pair for s in f[side][WARM_UP:]) for pair in repeats] for side in SIDES
    }
    more = Spread.of([on / off - 1 for on, off in zip(seconds[ON], seconds[OFF], strict=True)])
    return [
        precision,
        *(Spread.of(seconds[side]).show(3) for side in SIDES),
        f"{100 * more.median:.2f} ({100 * more.low:.2f}–{100 * more.high:.2f})",
        f"{100 * (GUARDS.most or 0):g}",
        yes(GUARDS.met(more.median)),
    ]


class Baton:
    """Goes from one run to the other after every update."""

    def __init__(self, sides: Sequence[str]) -> None:
        self._left, self._holder, self._change = list(sides), sides[0], threading.Condition()

    def take(self, side: str) -> None:
        """Wait for one's turn."""
        with self._change:
            self._change.wait_for(lambda: self._holder == side)

    def hand_on(self, side: str, *, last: bool = False) -> None:
        """End one's turn, for ever when it is the last."""
        with self._change:
            following = self._left[(self._left.index(side) + 1) % len(self._left)]
            if last:
                self._left.remove(side)
            self._holder = following
            self._change.notify_all()


class Turns:
    """A run's listener: takes the time of each of its updates, and waits while the other has its turn."""

    def __init__(self, side: str, baton: Baton) -> None:
        self.side, self.baton, self.seconds = side, baton, list[float]()
        self._began = time.perf_counter()

    def metrics(self, row: Mapping[str, Any]) -> None:
        if "loss" in row:
            self.seconds.append(time.perf_counter() - self._began)
            self.baton.hand_on(self.side)
            self.baton.take(self.side)
            self._began = time.perf_counter()

    def event(self, event: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


def in_turn(recipe: dict[str, Any], order: list[str]) -> Facts:
    """In a child: seconds of every update, by side."""
    from danlu import train

    baton = Baton(order)
    turns = {side: Turns(side, baton) for side in order}
    faults: list[BaseException] = []

    def one(side: str, overrides: tuple[str, ...], out: str) -> None:
        baton.take(side)
        try:
            train(recipe, *overrides, f"run.out={out}", listeners=[turns[side]])
        except BaseException as fault:
            faults.append(fault)
        finally:
            baton.hand_on(side, last=True)

    with tempfile.TemporaryDirectory() as folder:
        threads = [
            threading.Thread(target=one, args=(side, SIDES[side], f"{folder}/{number}"))
            for number, side in enumerate(order)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if faults:
        raise faults[0]
    return {side: turn.seconds for side, turn in turns.items()}
