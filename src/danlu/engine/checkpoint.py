"""Checkpoints: safetensors and JSON, whole or not at all, written while the run goes on.

A snapshot is copied to host memory, and a thread writes it: every rank its part, beside the final name, forced to disk,
and renamed by the first. A crash or a full disk at any moment leaves the ones before as they were. A manifest holds
every file's size and checksum, and reading begins by comparing them. No pickle is written or read.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch.distributed as dist

from danlu.engine import folders
from danlu.engine.manifest import Entry, read_manifest, require_whole, sync, write_manifest
from danlu.engine.ranks import ALONE, Ranks
from danlu.engine.staging import STATE, Snapshot, Stage
from danlu.errors import CheckpointError, RunError, UnsupportedError

if TYPE_CHECKING:
    from danlu.engine.stored import Saved

T = TypeVar("T")


@dataclass(frozen=True)
class Written:
    """A checkpoint that is there.

    Attributes:
        step: updates done.
        path: where.
        best: whether it was the best.
        staged_seconds: for how long the run was held up.
        written_seconds: from then until it was there.
        busy_seconds: of these, what writing took of a processor.
    """

    step: int
    path: Path
    best: bool
    staged_seconds: float
    written_seconds: float
    busy_seconds: float


class Checkpoints:
    """The checkpoints of one run: ``step-N`` folders, and links `last` and `best` to two of them.

    All ranks call the same methods in the same order; `failed`, `finished` and `steps` are each one's own.

    Args:
        folder: where they are; one that all ranks see.
        ranks: who writes and reads them.
    """

    def __init__(self, folder: Path, ranks: Ranks = ALONE) -> None:
        self.folder = folder
        self._ranks = ranks
        self._apart: Ranks | None = None
        self._stage = Stage(ranks)
        self._thread: threading.Thread | None = None
        self._fault: BaseException | None = None
        self._finished: deque[Written] = deque()

    def save(self, snapshot: Snapshot, *, best: bool, keep: int) -> None:
        """Copy a snapshot, which may change from then on, and begin to write it; the one before is waited for.

        When it is there, `last` (and `best`) point at it, and all but the newest `keep` and the best are removed.

        Raises:
            RunError: when the one before could not be written.
        """
        self.wait()
        start = time.perf_counter()
        if self._apart is None:
            self._apart = self._ranks.apart()
        self._stage.fill(snapshot.tensors)
        state = json.dumps(snapshot.state, indent=1)
        writing = _Writing(self.folder, snapshot.step, state, best, keep, self._stage, self._apart)
        staged = time.perf_counter() - start
        self._thread = threading.Thread(target=self._run, args=(writing, staged), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Go on when nothing is being written.

        Raises:
            RunError: when the last could not be written, a full disk say; what was there before stays.
        """
        self.close()
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault

    def failed(self) -> bool:
        """Whether it is known by now that the last could not be written; `wait` raises why."""
        return self._fault is not None

    def finished(self) -> list[Written]:
        """The checkpoints that came to be there since this was asked last."""
        return [self._finished.popleft() for _ in range(len(self._finished))]

    def close(self) -> None:
        """Wait until nothing is being written, whatever comes of it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, in order."""
        return folders.all_steps(self.folder)

    def peek(self, step: int | None = None) -> dict[str, Any]:
        """What a checkpoint, the last by default, says beside its tensors; nothing where that cannot be read.

        It is not compared with its checksum, which `open` does.
        """
        try:
            wanted = self.steps()[-1] if step is None else step
            told = json.loads((folders.of_step(self.folder, wanted) / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError, IndexError):
            return {}
        return told if isinstance(told, dict) else {}

    def load(self, step: int | None = None) -> Snapshot:
        """All of a checkpoint, the last by default, tensors whole; raises what `open` does."""
        return self.open(step).read()

    def open(self, step: int | None = None) -> Saved:
        """A checkpoint, the last by default, after comparing every file with its checksum; ranks share the work.

        Raises:
            CheckpointError: when there is none, or a file of it is absent, cut short or altered; the one before is
            named.
            UnsupportedError: when this build of torch cannot read any.
        """
        if not dist.is_available():
            what = "this build of torch has no torch.distributed, by which checkpoints are read"
            raise UnsupportedError(what, do="Install a build that has it.")
        from danlu.engine.stored import Saved  # brings half a second of imports, which only reading needs

        self.wait()
        rank, size = self._ranks.rank, self._ranks.size
        wanted, offer = self._ranks.each(lambda: self._choose(step))[0]
        folder = folders.of_step(self.folder, wanted)

        def compare() -> None:
            for name, entry in list(read_manifest(folder, offer).items())[rank::size]:
                require_whole(folder / name, entry, offer)

        self._ranks.each(compare)
        return Saved(wanted, folder, read_manifest(folder, offer), self._ranks)

    def forget_after(self, step: int, best: int | None, keep: int) -> None:
        """Remove what is later than a step that a run is taken up from again, and what a crash left behind.

        Args:
            step: the last one from now on.
            best: the best up to there, if there is one.
            keep: how many of the newest are kept.

        Raises:
            RunError: when it cannot be removed.
        """

        def forget() -> None:
            try:
                folders.forget_after(self.folder, step, best, keep)
            except OSError as error:
                raise RunError(f"what is later cannot be removed: {_reason(error)}", where=self.folder) from error

        self.wait()
        self._ranks.lead(forget)

    def _choose(self, step: int | None) -> tuple[int, str]:
        """The step that is meant, and what to do should it be damaged."""
        steps = self.steps()
        if not steps:
            raise CheckpointError("there is no checkpoint", where=self.folder, do="Remove the run and train anew.")
        wanted = steps[-1] if step is None else step
        if wanted not in steps:
            raise CheckpointError(
                f"there is no checkpoint of step {wanted}", where=self.folder, do=f"There are: {steps}."
            )
        earlier = [s for s in steps if s < wanted]
        return wanted, f"Resume from the one before with --step {earlier[-1]}." if earlier else _NONE_BEFORE

    def _run(self, writing: _Writing, staged: float) -> None:
        start, busy = time.perf_counter(), time.thread_time()
        try:
            _give_way()
            writing.run()
        except BaseException as error:  # the thread's last words; `wait` repeats them
            self._fault = error
        else:
            path, seconds = folders.of_step(self.folder, writing.step), time.perf_counter() - start
            worked = time.thread_time() - busy
            self._finished.append(Written(writing.step, path, writing.best, staged, seconds, worked))


@dataclass(frozen=True)
class _Writing:
    """One checkpoint on its way to disk."""

    folder: Path
    step: int
    state: str
    best: bool
    keep: int
    stage: Stage
    ranks: Ranks

    def run(self) -> None:
        """Every rank its part; a fault of one is a fault of all, and nothing of it stays."""
        try:
            self._each(lambda: folders.begin(self.folder, self.step) if self.ranks.leads else None)
            told = self._each(self._write)
            self._each(lambda: self._finish(told) if self.ranks.leads else None)
        except RunError:
            if self.ranks.leads:
                folders.abandon(self.folder, self.step)
            raise

    def _each(self, act: Callable[[], T]) -> list[T]:
        def tried() -> T:
            try:
                return act()
            except Exception as error:
                raise self._fault(error) from error

        return self.ranks.each(tried)

    def _write(self) -> dict[str, dict[str, str | int]]:
        """This rank's part: its files, and what the manifest says of them."""
        return {file.name: asdict(_kept(file)) for file in self.stage.write(folders.unfinished(self.folder, self.step))}

    def _finish(self, told: list[dict[str, dict[str, str | int]]]) -> None:
        """What is no tensor, the manifest, and the place among the others."""
        folder = folders.unfinished(self.folder, self.step)
        entries = {name: Entry(int(e["bytes"]), str(e["xxh3"])) for part in told for name, e in part.items()}
        for name, entry in entries.items():
            if (folder / name).stat().st_size != entry.bytes:
                raise OSError(f"{name} is not here as it was written")
        (folder / STATE).write_text(self.state, encoding="utf-8")
        write_manifest(folder, {**entries, STATE: _kept(folder / STATE)})
        folders.finish(self.folder, self.step, best=self.best, keep=self.keep)

    def _fault(self, error: Exception) -> RunError:
        steps = folders.all_steps(self.folder)
        before = f"The checkpoint of step {steps[-1]} is whole." if steps else _NONE_BEFORE
        by = f" (rank {self.ranks.rank})" if self.ranks.size > 1 else ""
        what = f"the checkpoint of step {self.step} could not be written: {_reason(error)}{by}"
        return RunError(what, where=folders.of_step(self.folder, self.step), do=before)


_LOWEST = 19
_NONE_BEFORE = "There is none before it."


def _give_way() -> None:
    """Let this thread take what the others leave: on a CPU, writing and checksums would hold up every product."""
    if sys.platform == "linux":  # where threads have a priority each
        with suppress(OSError):  # some containers allow none to be changed
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)


def _kept(file: Path) -> Entry:
    """Of a file that was forced to disk."""
    sync(file)
    return Entry.of(file)


def _reason(error: Exception) -> str:
    """What the system says, also where safetensors wraps it."""
    number = re.search(r"os error (\d+)", str(error))
    if number:
        return os.strerror(int(number[1]))
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
