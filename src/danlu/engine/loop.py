"""The loop: the only one there is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from danlu.batch import Batch
from danlu.contracts import Source
from danlu.engine.checkpoint import Checkpoints
from danlu.engine.device import Device
from danlu.engine.guarding import Guards
from danlu.engine.ranks import LostError
from danlu.engine.record import Recorder
from danlu.engine.schedule import Schedule
from danlu.engine.staging import Snapshot
from danlu.engine.state import optimizer_slots, optimizer_tensors
from danlu.engine.update import Updater
from danlu.errors import CheckpointError, DanluError

if TYPE_CHECKING:
    from danlu.engine.stored import Saved


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
    epochs: float = 0.0
    time: float = 0.0
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
        guards: what watches it.
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
    guards: Guards
    continuations: Callable[[], Iterable[tuple[str, str]]]
    stopping: Callable[[], str | None]
    identity: Mapping[str, Any]
    progress: Progress = field(default_factory=Progress)
    _trained_on: Mapping[str, Any] = field(default_factory=dict)
    _saved: int | None = None
    _unwritten: dict[str, Any] | None = None
    _torn: bool = False

    def run(self) -> str:
        """Train to the end; say why it ended: "done", "max_time", or what `stopping` said."""
        self.device.peak_flops(self.updater.policy.compute_dtype)
        self._trained_on = self.source.state_dict()
        ranks, stop = self.updater.parallel.ranks, None
        try:
            with ranks.together():
                self._begin()
                while stop is None and not self._done:
                    stop = self._turn()
                    self._tell_of_checkpoints()
                self._complete()
        except DanluError as error:
            self._save_what_was_learned(error)
            raise
        if stop is None:
            self.guards.ended(self.progress.step, self._share)
        return stop or "done"

    def _begin(self) -> None:
        num_bytes = self._snapshot(best=False).num_bytes * (1 if self.updater.optimizer.state else _WITH_AVERAGES)
        self.guards.begin(self.checkpoints.folder, num_bytes, self.plan.keep_checkpoints, len(self._kept))
        if self.progress.measured < 0:
            self._measure_start()

    def _complete(self) -> None:
        """Have a checkpoint of the last update on disk, which the samples skipped after it are left out of, too."""
        if self.progress.step and self.progress.step not in (*self._kept, self._saved):
            self.save()
        self.checkpoints.wait()
        self._tell_of_checkpoints()

    def _turn(self) -> str | None:
        """One update and what follows it; a reason to stop, if there is one."""
        start = time.perf_counter()
        groups = self.updater.groups(self.source.draw())
        row, reports = self._update(groups, start)
        self._trained_on = self.source.state_dict()
        if any(failed for _, failed in reports):
            self.checkpoints.wait()
        stop = next((reason for reason, _ in reports if reason is not None), None)
        if row is not None:
            stop = self._after_update(row, stop)
        return stop

    def _after_update(self, row: dict[str, Any], stop: str | None) -> str | None:
        """Measure, write down and save what is due; whether to stop all the same."""
        self._unwritten, texts = row, list[tuple[str, str]]()
        if due := self._due(self.plan.eval_every):
            row, texts = row | self._measure(), list(self.continuations())
            self._unwritten = row
        done = self._done
        if done and not due:
            row, texts = row | self._measure(), list(self.continuations())
        self.recorder.metrics(row)
        self._unwritten = None
        self._tell_of_texts(texts)
        self.guards.taken(self.progress.step, self.source.epochs)
        begun = time.perf_counter()
        if done or stop is not None or self._due(self.plan.checkpoint_every):
            self.save()
        self.guards.turned(self.progress.step, time.perf_counter() - begun)
        return None if done else stop

    def _save_what_was_learned(self, error: DanluError) -> None:
        """A checkpoint of the last update, where there is none; samples drawn since then are drawn again."""
        with suppress(DanluError):  # the first fault is the one to tell
            self.checkpoints.close()
            if isinstance(error, LostError) or self._torn:  # no rank can write its part alone, and no part of a mix
                return
            if (row := self._unwritten) is not None:  # what comes next cannot be read; what was done is written down
                self.updater.parallel.ranks.lead(lambda: self.recorder.metrics(row))
            self.updater.parallel.settle(self.updater.policy)
            if self.progress.step and self.progress.step not in self._kept:
                self.save()
                self.checkpoints.wait()
            self._tell_of_checkpoints()

    @property
    def _kept(self) -> list[int]:
        """The steps that there are checkpoints of, as rank 0 sees them."""
        return self.updater.parallel.ranks.first(self.checkpoints.steps())

    def save(self) -> None:
        """Begin to write a checkpoint.

        Raises:
            RunError: when there is no room for it, or the one before could not be written.
        """
        progress, best = self.progress, self._is_best()
        snapshot = self._snapshot(best=best)
        self.guards.before_checkpoint(self.checkpoints.folder, snapshot.num_bytes)
        self.checkpoints.save(snapshot, best=best, keep=self.plan.keep_checkpoints)
        self._saved = progress.step

    def _snapshot(self, *, best: bool) -> Snapshot:
        policy, progress = self.updater.policy, self.progress
        progress.time = self.updater.parallel.ranks.first(time.time())
        if best:
            progress.best_step, progress.best_loss = progress.step, progress.measured_loss
        tensors: dict[str, dict[str, Tensor]] = {
            "model": dict(policy.named_parameters()),
            "optimizer": optimizer_tensors(self.updater.optimizer, policy),
        }
        source = self._trained_on or self.source.state_dict()
        state = {"progress": asdict(progress), "source": source, "guards": self.guards.state_dict(), **self.identity}
        return Snapshot(progress.step, tensors, state)

    def _tell_of_checkpoints(self) -> None:
        for done in self.checkpoints.finished():
            spent = {"staged_seconds": done.staged_seconds, "written_seconds": done.written_seconds}
            self.recorder.event(
                "checkpoint", step=done.step, path=f"checkpoints/{done.path.name}", best=done.best, **spent
            )

    def restore(self, step: int | None = None) -> int:
        """Go on from a checkpoint, the last by default; its step.

        Raises:
            CheckpointError: when it is of another model, or does not hold what is needed.
        """
        saved = self._load(step)
        try:
            self.source.load_state_dict(saved.state["source"])
            self.guards.load_state_dict(saved.state["guards"])
            self.guards.resumed(self.source.epochs)
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"the state of step {saved.step} is incomplete", where=self.checkpoints.folder
            ) from error
        return saved.step

    def _load(self, step: int | None) -> Saved:
        """Weights, averages and progress of a checkpoint, and what else it holds."""
        saved = self.checkpoints.open(step)
        policy, self._torn = self.updater.policy, True
        saved.read_into("model", dict(policy.named_parameters()))
        slots = optimizer_slots(self.updater.optimizer, policy, saved.specs("optimizer"))
        saved.read_into("optimizer", slots)
        try:
            self.progress = Progress(**saved.state["progress"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"the state of step {saved.step} is incomplete", where=self.checkpoints.folder
            ) from error
        if self.progress.best_step not in self._kept:  # removed for a later one, which is undone now
            self.progress.best_step, self.progress.best_loss = None, None
        self._torn = False
        return saved

    def _roll_back(self) -> int:
        """Back to the last checkpoint, and on from there with the samples that come next; how many updates that is."""
        self.checkpoints.wait()
        self._tell_of_checkpoints()
        before, kept = self.progress.step, self._kept
        if before in kept or not kept:
            return 0
        step = self._load(None).step
        self.updater.parallel.ranks.lead(lambda: self.recorder.cut_back(step))  # what was said stays said
        return before - step

    def _is_best(self) -> bool:
        """Whether what is saved now has the least held-out loss of all that was saved."""
        progress = self.progress
        if progress.measured != progress.step or progress.measured_loss is None:
            return False
        return progress.best_loss is None or progress.measured_loss < progress.best_loss

    @property
    def _share(self) -> float:
        return self.plan.share(self.progress.step, self.source.epochs)

    @property
    def _done(self) -> bool:
        return self._share >= 1 or self.source.exhausted

    def _due(self, every: int) -> bool:
        return self.progress.step % every == 0

    def _report(self) -> tuple[str | None, bool]:
        """What this rank has to say to the others at each update: a reason to stop; that a checkpoint failed."""
        return self.stopping() or ("max_time" if self.guards.clock.over() else None), bool(self.checkpoints.fault())

    def _update(self, groups: Sequence[Batch], start: float) -> tuple[dict[str, Any] | None, Sequence[Any]]:
        """One update by what was just drawn: what was measured of it, if it was taken; and what the ranks report."""
        updater, progress, step = self.updater, self.progress, self.progress.step + 1
        epochs = self.source.epochs
        lr = self.plan.lr * self.schedule.factor(min(1.0, self.plan.share(step, epochs)))
        measured = updater.gradient(groups, progress.step, self._report)
        norm = updater.clip()
        verdict = self.guards.judge(step, measured, norm, groups)
        if verdict.action != "take":
            undone = self._roll_back() if verdict.action == "rollback" else 0
            self.recorder.event(verdict.action, step=step, message=verdict.sentence, undone=undone)
            return None, measured.told
        updater.move(lr)
        self.device.synchronize()
        seconds = time.perf_counter() - start
        progress.step, progress.epochs = step, epochs
        progress.samples += measured.samples
        progress.tokens += measured.tokens
        peak = self.device.peak_flops(updater.policy.compute_dtype) * updater.parallel.ranks.size
        row = {
            "step": step,
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
        return row, measured.told

    def _measure(self) -> dict[str, float]:
        """The metrics on held-out data, each name with "held_out_" before it."""
        measured = {} if self.held_out is None else self.updater.measure(self.held_out())
        self.progress.measured = self.progress.step
        self.progress.measured_loss = measured.get("loss")
        return {f"held_out_{name}": value for name, value in measured.items()}

    def _measure_start(self) -> None:
        row, texts = self._measure(), list(self.continuations())
        if row:
            self.recorder.metrics({"step": self.progress.step, **row})
        self._tell_of_texts(texts)

    def _tell_of_texts(self, texts: Iterable[tuple[str, str]]) -> None:
        for prompt, text in texts:
            self.recorder.event("sample", step=self.progress.step, prompt=prompt, text=text)


_WITH_AVERAGES = 3
"""How many times as large as the weights a checkpoint is, before the optimiser has made its averages."""
