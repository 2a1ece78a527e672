"""A run's history: how far it has come, what of it is on disk, and the ways back to that.

A checkpoint is of the last update that was taken, and says that the samples up to it are consumed: what was drawn since
is drawn again. All ranks call the same methods in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from danlu.contracts import Source
from danlu.engine.checkpoint import Checkpoints
from danlu.engine.guarding import Guards
from danlu.engine.learner import Learner
from danlu.engine.ranks import LostError
from danlu.engine.record import Recorder
from danlu.engine.staging import Snapshot, bytes_on_disk
from danlu.engine.state import optimizer_slots, optimizer_tensors
from danlu.errors import CheckpointError, DanluError

if TYPE_CHECKING:
    from danlu.engine.stored import Saved

_WITH_AVERAGES = 3
"""How many times as large as the weights a checkpoint is, before the optimiser has made its averages."""


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
class History:
    """What of a run is saved, restored, and gone back to.

    Attributes:
        updater: holds the weights and the optimiser's averages.
        source: what is learned from.
        guards: what they go by is saved, too.
        checkpoints: where snapshots go.
        recorder: where measurements go.
        keep: how many of the newest checkpoints are kept.
        identity: what a checkpoint says of the run it belongs to: its recipe; "base", the fingerprint of what an
            adapter stands on; "asked", those of the models that are only asked.
        progress: how far the run has come.
    """

    updater: Learner
    source: Source
    guards: Guards
    checkpoints: Checkpoints
    recorder: Recorder
    keep: int
    identity: Mapping[str, Any]
    progress: Progress = field(default_factory=Progress)
    _trained_on: Mapping[str, Any] = field(default_factory=dict)
    _unwritten: dict[str, Any] | None = None
    _saved: int | None = None
    _best_before: tuple[int | None, float | None] = (None, None)
    _torn: bool = False

    def begin(self) -> None:
        """Look at the source and at the disk, before the first update of a session."""
        self.learned()
        times = 1 if self.updater.optimizer.state else _WITH_AVERAGES
        num_bytes = times * bytes_on_disk(self._tensors(), self._state(replace(self.progress, time=time.time())))
        self.guards.before_checkpoints(self.checkpoints.folder, num_bytes, self.keep, len(self._kept))

    def learned(self) -> None:
        """All that was drawn so far was learned from, or is passed over: what is saved next has consumed it."""
        self._trained_on = self.source.state_dict()

    def owe(self, row: dict[str, Any]) -> None:
        """Keep what was measured of the update at hand, to be written down even where what comes next fails."""
        self._unwritten = row

    def write(self, row: Mapping[str, Any]) -> None:
        """Write down what was measured of the update at hand."""
        self.recorder.metrics(row)
        self._unwritten = None

    def save(self) -> None:
        """Begin to write a checkpoint.

        Raises:
            RunError: when there is no room for it, or the one before could not be written.
        """
        before, best = self.progress, self._is_best()
        progress = replace(before, time=self.updater.parallel.ranks.first(time.time()))
        if best:
            progress.best_step, progress.best_loss = progress.step, progress.measured_loss
        snapshot = Snapshot(progress.step, self._tensors(), self._state(progress))
        self.guards.before_checkpoint(self.checkpoints.folder, snapshot.num_bytes)
        self.checkpoints.save(snapshot, best=best, keep=self.keep)
        self._saved, self._best_before = progress.step, (before.best_step, before.best_loss)
        self.progress = progress

    def tell(self) -> None:
        """Write down which checkpoints came to be there since this was asked last."""
        for done in self.checkpoints.finished():
            spent = {"staged_seconds": done.staged_seconds, "written_seconds": done.written_seconds}
            self.recorder.event(
                "checkpoint", step=done.step, path=f"checkpoints/{done.path.name}", best=done.best, **spent
            )

    def settle(self) -> None:
        """Go on when nothing is being written.

        Raises:
            RunError: when the last checkpoint could not be written.
        """
        self.checkpoints.wait()
        self.tell()

    def complete(self) -> None:
        """Have a checkpoint of the last update on disk, which the samples skipped after it are left out of, too.

        Raises:
            RunError: when it cannot be written.
        """
        if self.progress.step and self.progress.step not in (*self._kept, self._saved):
            self.save()
        self.settle()

    def rescue(self, error: DanluError) -> None:
        """Have one, as far as that can be done after a fault; samples drawn since the update are drawn again."""
        with suppress(DanluError):  # the first fault is the one to tell
            self.checkpoints.close()
            if isinstance(error, LostError) or self._torn or self.updater.torn:
                return  # no rank can write its part alone, and a mix of two updates is worth nothing
            if (row := self._unwritten) is not None:  # what comes next cannot be read; what was done is written down
                self.updater.parallel.ranks.lead(lambda: self.recorder.metrics(row))
            self.updater.parallel.settle(self.updater.policy)
            kept = self._kept
            if self.progress.step and self.progress.step not in kept:
                if self.progress.best_step not in (None, *kept):  # it is what could not be written
                    self.progress.best_step, self.progress.best_loss = self._best_before
                self.save()
                self.checkpoints.wait()
            self.tell()

    def restore(self, step: int | None = None) -> int:
        """Go on from a checkpoint, the last by default; its step.

        Raises:
            CheckpointError: when it is of another model, or does not hold what is needed.
        """
        saved = self._load(step)
        with self._in_full(saved):
            self.source.load_state_dict(saved.state["source"])
            self.guards.load_state_dict(saved.state["guards"])
            self.guards.resumed(self.source.epochs)
        return saved.step

    def forget_later(self) -> None:
        """Remove the checkpoints that are later than what was restored, and what a crash left behind.

        Raises:
            RunError: when they cannot be removed.
        """
        self.checkpoints.forget_after(self.progress.step, self.progress.best_step, self.keep)

    def roll_back(self) -> int:
        """Back to the last checkpoint, and on from there with the samples that come next; how many updates that is.

        Raises:
            RunError: when the last checkpoint could not be written.
        """
        self.settle()
        before, kept = self.progress.step, self._kept
        if before in kept or not kept:
            return 0
        step = self._load(None).step
        self.updater.parallel.ranks.lead(lambda: self.recorder.cut_back(step))  # what was said stays said
        return before - step

    def _load(self, step: int | None) -> Saved:
        """Weights, averages and progress of a checkpoint, and what else it holds."""
        saved = self.checkpoints.open(step)
        require_base(saved, self.identity.get("base"))
        then, now = saved.state.get("asked") or {}, self.identity.get("asked") or {}
        if others := sorted(role for role in {*then, *now} if then.get(role) != now.get(role)):
            what = f"the {others[0]} has other weights than when the run began"
            raise CheckpointError(what, where=self.checkpoints.folder, do="Give it the checkpoint that it was.")
        policy, self._torn = self.updater.policy, True
        saved.read_into("model", self.updater.kept)
        slots = optimizer_slots(self.updater.optimizer, policy, saved.specs("optimizer"))
        saved.read_into("optimizer", slots)
        with self._in_full(saved):
            self.progress = Progress(**saved.state["progress"])
        if self.progress.best_step not in self._kept:  # removed for a later one, which is undone now
            self.progress.best_step, self.progress.best_loss = None, None
        self._torn = False
        return saved

    @contextmanager
    def _in_full(self, saved: Saved) -> Iterator[None]:
        """Within, what a checkpoint's state lacks is told."""
        try:
            yield
        except (KeyError, TypeError) as error:
            what = f"the state of step {saved.step} is incomplete"
            raise CheckpointError(what, where=self.checkpoints.folder) from error

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        policy = self.updater.policy
        return {
            "model": self.updater.kept,
            "optimizer": optimizer_tensors(self.updater.optimizer, policy),
        }

    def _state(self, progress: Progress) -> dict[str, Any]:
        """What is no tensor."""
        source = self._trained_on or self.source.state_dict()
        return {"progress": asdict(progress), "source": source, "guards": self.guards.state_dict(), **self.identity}

    @property
    def _kept(self) -> list[int]:
        """The steps that there are checkpoints of, as rank 0 sees them."""
        return self.updater.parallel.ranks.first(self.checkpoints.steps())

    def _is_best(self) -> bool:
        """Whether what is saved now has the least held-out loss of all that was saved."""
        progress = self.progress
        if progress.measured != progress.step or progress.measured_loss is None:
            return False
        return progress.best_loss is None or progress.measured_loss < progress.best_loss


def require_base(saved: Saved, base: int | None) -> None:
    """See that a checkpoint's adapter stands on the weights that it was trained on.

    Args:
        saved: the checkpoint.
        base: the fingerprint of what it is to stand on; None where there is no adapter.

    Raises:
        CheckpointError: when those are others.
    """
    if saved.state.get("base") != base:
        what = "the adapter's base has other weights than when the run began"
        raise CheckpointError(what, where=saved.folder, do="Give it the checkpoint that it was.")
