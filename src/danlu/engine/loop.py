"""The loop: the only one there is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from danlu.contracts import Source
from danlu.engine.device import Device
from danlu.engine.guarding import Guards
from danlu.engine.history import History, Progress
from danlu.engine.learner import Learner
from danlu.engine.record import Recorder
from danlu.engine.schedule import Schedule
from danlu.errors import DanluError

_TIMES = 10
"""How often in a run what is not said otherwise is done."""


@dataclass(frozen=True)
class Plan:
    """How long a run is and what happens when.

    Attributes:
        steps: updates, at most; None is no bound.
        epochs: passes over the data, at most; None is no bound. The run ends at the bound it comes to first.
        eval_every: updates between measurements; None is ten in a run.
        checkpoint_every: updates between checkpoints; None is ten in a run.
        lr: the highest learning rate.
    """

    steps: int | None
    epochs: int | None
    eval_every: int | None
    checkpoint_every: int | None
    lr: float

    def share(self, steps: int, epochs: float) -> float:
        """The share of the run that is done after so many updates and passes over the data."""
        bounds = ((steps, self.steps), (epochs, self.epochs))
        return max((done / bound for done, bound in bounds if bound is not None), default=0.0)


@dataclass(frozen=True)
class Loop:
    """A run's parts, and how they turn.

    Attributes:
        updater: moves the weights.
        source: what it learns from.
        held_out: the samples it is measured on; none when there are no such data.
        schedule: of the learning rate.
        device: where.
        plan: how long, how often.
        history: what is saved of it, and gone back to.
        recorder: where measurements go.
        guards: what watches it.
        shown: asked at each measurement for what a person may look at: kinds of events and their fields.
        stopping: asked after each update; a reason ends the run there.
    """

    updater: Learner
    source: Source
    held_out: Callable[[], Iterable[Any]] | None
    schedule: Schedule
    device: Device
    plan: Plan
    history: History
    recorder: Recorder
    guards: Guards
    shown: Callable[[], Iterable[tuple[str, Mapping[str, Any]]]]
    stopping: Callable[[], str | None]

    @property
    def progress(self) -> Progress:
        """How far the run has come."""
        return self.history.progress

    def run(self) -> str:
        """Train to the end; say why it ended: "done", "max_time", or what `stopping` said."""
        self.updater.ready(self.device)
        ranks, stop = self.updater.parallel.ranks, None
        try:
            with ranks.together():
                self._begin()
                while stop is None and not self._done:
                    stop = self._turn()
                    self.history.tell()
                self.history.complete()
        except DanluError as error:
            self.history.rescue(error)
            raise
        if stop is None:
            self.guards.ended(self.progress.step, self._share)
        return stop or "done"

    def _begin(self) -> None:
        self.guards.begin()
        self.history.begin()
        if self.progress.measured < 0:
            self._measure_start()

    def _turn(self) -> str | None:
        """One update and what follows it; a reason to stop, if there is one."""
        start, before = time.perf_counter(), self._share
        groups = self.updater.groups(self.source.draw())
        row, reports = self._update(groups, start)
        self.history.learned()
        if any(failed for _, failed in reports):
            self.history.settle()
        stop = next((reason for reason, _ in reports if reason is not None), None)
        if row is not None:
            stop = self._after_update(row, stop, before)
        return stop

    def _after_update(self, row: dict[str, Any], stop: str | None, before: float) -> str | None:
        """Measure, write down and save what is due; whether to stop all the same."""
        self.history.owe(row)
        shown = list[tuple[str, Mapping[str, Any]]]()
        if due := self._due(self.plan.eval_every, before):
            row, shown = row | self._measure(), list(self.shown())
            self.history.owe(row)
        done = self._done
        if done and not due:
            row, shown = row | self._measure(), list(self.shown())
        self.history.write(row)
        self._tell(shown)
        self.guards.taken(self.progress.step, self.source.epochs)
        begun = time.perf_counter()
        if done or stop is not None or self._due(self.plan.checkpoint_every, before):
            self.history.save()
        self.guards.turned(self.progress.step, time.perf_counter() - begun)
        return None if done else stop

    @property
    def _share(self) -> float:
        return self.plan.share(self.progress.step, self.source.epochs)

    @property
    def _done(self) -> bool:
        return self._share >= 1 or self.source.exhausted

    def _due(self, every: int | None, before: float) -> bool:
        """Whether it is time again, of what is due so often, or ten times in a run."""
        if every is None:
            return math.floor(self._share * _TIMES) > math.floor(before * _TIMES)
        return self.progress.step % every == 0

    def _report(self) -> tuple[str | None, bool]:
        """What this rank has to say to the others at each update: a reason to stop; that a checkpoint failed."""
        return self.stopping() or ("max_time" if self.guards.clock.over() else None), self.history.checkpoints.failed()

    def _update(self, groups: Sequence[Any], start: float) -> tuple[dict[str, Any] | None, Sequence[Any]]:
        """One update by what was just drawn: what was measured of it, if it was taken; and what the ranks report."""
        updater, progress, step = self.updater, self.progress, self.progress.step + 1
        lr = self.plan.lr * self.schedule.factor(min(1.0, self.plan.share(step, self.source.epochs)))
        measured = updater.gradient(groups, progress.step, self._report)
        norm = updater.clip()
        verdict = self.guards.judge(step, measured, norm, groups)
        if verdict.action != "take":
            undone = self.history.roll_back() if verdict.action == "rollback" else 0
            self.recorder.event(verdict.action, step=step, message=verdict.sentence, undone=undone)
            return None, measured.told
        updater.move(lr)
        self.device.synchronize()
        seconds = time.perf_counter() - start
        progress.step, progress.epochs = step, self.source.epochs  # some are consumed only by learning from them
        progress.samples += measured.samples
        progress.tokens += measured.tokens
        row = {
            "step": step,
            **measured.metrics,
            **updater.facts(measured, seconds, self.device),
            **updater.moved(norm, lr),
            "memory_bytes": self.device.memory_used(),
            **({"total_tokens": progress.tokens} if progress.tokens else {}),
        }
        return row, measured.told

    def _measure(self) -> dict[str, float]:
        """The metrics on held-out data, each name with "held_out_" before it."""
        measured = {} if self.held_out is None else self.updater.measure(self.held_out())
        self.progress.measured = self.progress.step
        self.progress.measured_loss = self.updater.regret(measured) if measured else None
        return {f"held_out_{name}": value for name, value in measured.items()}

    def _measure_start(self) -> None:
        row, shown = self._measure(), list(self.shown())
        if row:
            self.recorder.metrics({"step": self.progress.step, **row})
        self._tell(shown)

    def _tell(self, shown: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        for kind, fields in shown:
            self.recorder.event(kind, step=self.progress.step, **fields)
