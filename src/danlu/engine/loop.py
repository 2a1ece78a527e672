"""The loop: the only one there is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from danlu.contracts import Batch, Source
from danlu.engine.checkpoint import Checkpoints
from danlu.engine.device import Device
from danlu.engine.record import Recorder
from danlu.engine.schedule import Schedule
from danlu.engine.staging import Snapshot
from danlu.engine.state import optimizer_slots, optimizer_tensors
from danlu.engine.update import Updater, among
from danlu.errors import CheckpointError, DanluError, RunError

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Plan:
    """How long a run is and what happens when.

    Attributes:
        steps: updates, at most; None is no bound.
        epochs: passes over the data, at most; None is no bound. The run ends at the bound it comes to first.
        eval_every: updates between measurements.
        checkpoint_every: updates between checkpoints.
        keep_checkpoints: how many of the newest are kept.
        lr: the highest learning rate.
    """

    steps: int | None
    epochs: int | None
    eval_every: int
    checkpoint_every: int
    keep_checkpoints: int
    lr: float

    def share(self, steps: int, epochs: float) -> float:
        """The share of the run that is done after so many updates and passes over the data."""
        bounds = ((steps, self.steps), (epochs, self.epochs))
        return max((done / bound for done, bound in bounds if bound is not None), default=0.0)


@dataclass
class Progress:
    """How far a run has come; all of it is saved."""

    step: int = 0
    samples: int = 0
    tokens: int = 0
    measured: int = -1
    measured_loss: float | None = None
    best_step: int | None = None
    best_loss: float | None = None


@dataclass
class Loop:
    """A run's parts, and how they turn.

    Attributes:
        updater: moves the weights.
        source: what it learns from.
        held_out: the samples it is measured on; none when there are no such data.
        schedule: of the learning rate.
        device: where.
        plan: how long, how often.
        checkpoints: where snapshots go.
        recorder: where measurements go.
        continuations: prompts and what the model makes of them, asked at each measurement.
        stopping: asked after each update; a reason ends the run there.
        identity: what a checkpoint says of the run it belongs to.
    """

    updater: Updater
    source: Source
    held_out: Callable[[], Iterable[Any]] | None
    schedule: Schedule
    device: Device
    plan: Plan
    checkpoints: Checkpoints
    recorder: Recorder
    continuations: Callable[[], Iterable[tuple[str, str]]]
    stopping: Callable[[], str | None]
    identity: Mapping[str, Any]
    progress: Progress = field(default_factory=Progress)
    _trained_on: Mapping[str, Any] = field(default_factory=dict)

    def run(self) -> str:
        """Train to the end; say why it ended: "done", or what `stopping` said."""
        self.device.peak_flops(self.updater.policy.compute_dtype)
        self._trained_on = self.source.state_dict()
        try:
            if self.progress.measured < 0:
                self._measure_start()
            stop = None
            while stop is None and not self._done:
                stop = self._turn()
                self._tell_of_checkpoints()
                if self.checkpoints.fault() is not None:
                    break
            self.checkpoints.wait()
            self._tell_of_checkpoints()
        except DanluError:
            self._save_what_was_learned()
            raise
        if stop is None and self.plan.share(self.progress.step, self.source.epochs) < 1:
            told = f"the data ended after {self.progress.step} updates, before the run was to"
            self.recorder.event("warning", message=told)
        return stop or "done"

    def _turn(self) -> str | None:
        """One update and what follows it; a reason to stop, if there is one."""
        start = time.perf_counter()
        row, stop = self._update(self.updater.groups(self.source.draw()), start)
        self._trained_on = self.source.state_dict()
        try:
            done = self._done
        except DanluError:  # what comes next cannot be read; what was done is written down
            self.recorder.metrics(row)
            raise
        stop = None if done else stop
        if done or self._due(self.plan.eval_every):
            row |= self._measure()
        self.recorder.metrics(row)
        if self.progress.measured == self.progress.step:
            self._continue_prompts()
        if done or stop is not None or self._due(self.plan.checkpoint_every):
            self.save()
        return stop

    def _save_what_was_learned(self) -> None:
        """A checkpoint of the last update, where there is none; samples drawn since then are drawn again."""
        with suppress(DanluError):  # the first fault is the one to tell
            self.checkpoints.close()
            if self.progress.step and self.progress.step not in self.checkpoints.steps():
                self.save()
                self.checkpoints.wait()
            self._tell_of_checkpoints()

    def save(self) -> None:
        """Begin to write a checkpoint."""
        policy, progress = self.updater.policy, self.progress
        best = self._is_best()
        if best:
            progress.best_step, progress.best_loss = progress.step, progress.measured_loss
        tensors: dict[str, dict[str, Tensor]] = {
            "model": dict(policy.named_parameters()),
            "optimizer": optimizer_tensors(self.updater.optimizer, policy),
        }
        state = {"progress": asdict(progress), "source": self._trained_on or self.source.state_dict(), **self.identity}
        self.checkpoints.save(Snapshot(progress.step, tensors, state), best=best, keep=self.plan.keep_checkpoints)

    def _tell_of_checkpoints(self) -> None:
        for done in self.checkpoints.finished():
            self.recorder.event("checkpoint", step=done.step, path=f"checkpoints/{done.path.name}", best=done.best)

    def restore(self, step: int | None = None) -> int:
        """Go on from a checkpoint, the last by default; its step.

        Raises:
            CheckpointError: when it is of another model, or does not hold what is needed.
        """
        saved = self.checkpoints.open(step)
        policy = self.updater.policy
        saved.read_into("model", dict(policy.named_parameters()))
        slots = optimizer_slots(self.updater.optimizer, policy, saved.specs("optimizer"))
        saved.read_into("optimizer", slots)
        try:
            self.progress = Progress(**saved.state["progress"])
            self.source.load_state_dict(saved.state["source"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"the state of step {saved.step} is incomplete", where=self.checkpoints.folder
            ) from error
        if self.progress.best_step not in self.checkpoints.steps():  # removed for a later one, which is undone now
            self.progress.best_step, self.progress.best_loss = None, None
        return saved.step

    def _is_best(self) -> bool:
        """Whether what is saved now has the least held-out loss of all that was saved."""
        progress = self.progress
        if progress.measured != progress.step or progress.measured_loss is None:
            return False
        return progress.best_loss is None or progress.measured_loss < progress.best_loss

    @property
    def _done(self) -> bool:
        return self.plan.share(self.progress.step, self.source.epochs) >= 1 or self.source.exhausted

    def _due(self, every: int) -> bool:
        return self.progress.step % every == 0

    def _update(self, groups: Sequence[Batch], start: float) -> tuple[dict[str, Any], str | None]:
        """One update by what was just drawn; what was measured of it, and a reason to stop that some rank has."""
        updater, progress = self.updater, self.progress
        lr = self.plan.lr * self.schedule.factor(min(1.0, self.plan.share(progress.step + 1, self.source.epochs)))
        measured = updater.gradient(groups, progress.step, self.stopping)
        norm = updater.clip()
        if not (math.isfinite(measured.metrics["loss"]) and math.isfinite(norm)):
            raise _exploded(progress.step + 1, measured.metrics["loss"], norm, groups)
        updater.move(lr)
        self.device.synchronize()
        seconds = time.perf_counter() - start
        progress.step += 1
        progress.samples += measured.samples
        progress.tokens += measured.tokens
        ranks = updater.parallel.ranks
        peak = self.device.peak_flops(updater.policy.compute_dtype) * ranks.size
        row = {
            "step": progress.step,
            **measured.metrics,
            "tokens": measured.tokens,
            "samples": measured.samples,
            "packs": measured.packs,
            "seconds": seconds,
            "tokens_per_second": measured.tokens / seconds,
            "mfu": measured.flops / seconds / peak,
            "grad_norm": norm,
            "lr": lr,
            "memory_bytes": self.device.memory_used(),
            "packing_efficiency": measured.tokens / (measured.packs * updater.pack_tokens),
            "total_tokens": progress.tokens,
        }
        return row, next((reason for reason in measured.told if reason is not None), None)

    def _measure(self) -> dict[str, float]:
        """The metrics on held-out data, each name with "held_out_" before it."""
        measured = {} if self.held_out is None else self.updater.measure(self.held_out())
        self.progress.measured = self.progress.step
        self.progress.measured_loss = measured.get("loss")
        return {f"held_out_{name}": value for name, value in measured.items()}

    def _measure_start(self) -> None:
        if row := self._measure():
            self.recorder.metrics({"step": self.progress.step, **row})
        self._continue_prompts()

    def _continue_prompts(self) -> None:
        for prompt, text in self.continuations():
            self.recorder.event("sample", step=self.progress.step, prompt=prompt, text=text)


def _exploded(step: int, loss: float, norm: float, groups: Sequence[Batch]) -> RunError:
    return RunError(
        f"step {step} has loss {loss} and gradient norm {norm}, on samples {among(groups)}; no weight was changed",
        do="Lower optimizer.lr, or look at these samples; the last checkpoint is whole.",
    )
