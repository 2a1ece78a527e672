"""The token cache: documents are encoded once, a chunk at a time, by one process or several.

A chunk's shard is named by a hash of its content, the tokenizer and the options. So a run that finds a shard need not
parse the documents, an appended document costs one chunk, and runs that share a folder share the work.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path

from danlu.data import store
from danlu.data.chunks import Chunk, FileChangedError
from danlu.data.encoder import Encoder
from danlu.data.index import forget
from danlu.data.shard import Shard
from danlu.errors import DataError, RunError
from danlu.units import duration

WORTH_PROCESSES = 32 << 20
"""Bytes of documents below which one process, with the tokenizer's own threads, is done before others have started."""
PATIENCE = 300.0
"""Seconds without an encoded chunk after which the processes that should encode have stalled."""
_NICENESS = 5
"""How far the processes stand back for the run, which they work ahead of."""
_COURTESY = 60.0
"""Seconds for which a chunk that another process encodes is waited for; then it is encoded here, too."""
_ENDING = 10.0
"""Seconds that a process has for what it has in hand when all is over."""


class TokenCache:
    """Shards of chunks: those that are there, and those that are made when they are wanted or ahead of that.

    Attributes:
        encoder: what makes tokens of documents.
        folder: where the shards are.
    """

    def __init__(self, encoder: Encoder, folder: Path, *, workers: int = 0, parallel: bool = True) -> None:
        """Nothing is made yet, and no process started.

        Args:
            encoder: what makes tokens of documents.
            folder: the cache's folder.
            workers: processes to encode with; 0 is as many as there are cores. The shards do not depend on it.
            parallel: whether there is enough to do for processes.
        """
        self.encoder = encoder
        self.folder = folder
        self._workers = (workers or os.cpu_count() or 1) if parallel else 1
        self._alone = workers == 1
        self._processes: ProcessPoolExecutor | None = None
        self._jobs: dict[Path, Future[None]] = {}
        self._end: Callable[[], object] = lambda: None

    def path(self, chunk: Chunk) -> Path:
        """Where a chunk's shard is, or would be."""
        return store.entry(self.folder, self.encoder.key(chunk))

    def shards(self, chunks: Sequence[Chunk]) -> list[Shard]:
        """The shards of some chunks, in order; what is not there yet is made.

        Raises:
            DataError: when a file cannot be read or the cache not be written.
            RunError: when a process dies or stalls.
        """
        paths = [self.path(chunk) for chunk in chunks]
        found = [Shard.open(path, chunk.place) for path, chunk in zip(paths, chunks, strict=True)]
        self._make({path: chunk for path, chunk, shard in zip(paths, chunks, found, strict=True) if shard is None})
        return [shard or _made(path, chunk) for path, chunk, shard in zip(paths, chunks, found, strict=True)]

    def prefetch(self, chunks: Sequence[Chunk]) -> None:
        """Begin to make what is not there yet, in processes, and give up what was begun and is not among it."""
        if self._alone:
            return
        absent = {path: chunk for chunk in chunks if not (path := self.path(chunk)).exists()}
        self._give_up(absent.keys())
        for path, chunk in absent.items():
            self._begin(path, chunk)

    def close(self) -> None:
        """End the processes, once they are done with what they have in hand or were waited for long enough."""
        self._give_up(())
        self._end()
        self._processes = None

    def _make(self, absent: Mapping[Path, Chunk]) -> None:
        if self._workers > 1:
            self._give_up(absent.keys())
            for path, chunk in absent.items():
                self._begin(path, chunk)
        for path, chunk in absent.items():
            job = self._jobs.pop(path, None)
            try:
                if job is None:
                    _store_once(self.encoder, chunk, path)
                else:
                    job.result(PATIENCE)
            except FileChangedError:
                forget(chunk, self.folder)
                raise
            except TimeoutError as fault:
                raise self._stalled(chunk) from fault
            except (BrokenProcessPool, CancelledError) as fault:
                do = "Set data.workers=1; a script of your own must start from `if __name__ == '__main__':`."
                raise RunError("a process that encodes documents died", do=do) from fault

    def _stalled(self, chunk: Chunk) -> RunError:
        if self._processes is not None:
            _end(self._processes, 0)
            self._processes = None
        self._jobs.clear()
        what = f"the documents from here on were not encoded within {duration(PATIENCE)}: a process has stalled"
        do = "Go on by: danlu resume RUN; if it happens again, with data.workers=1."
        return RunError(what, where=chunk.place.of(0), do=do)

    def _begin(self, path: Path, chunk: Chunk) -> None:
        if path in self._jobs:
            return
        if self._processes is None:  # never copies of a threaded process
            self._processes = ProcessPoolExecutor(
                self._workers, _Context(), initializer=_start, initargs=(self.encoder,)
            )
            self._end = weakref.finalize(self, _end, self._processes, _ENDING)
        with suppress(BrokenProcessPool):  # told when the shard is wanted
            self._jobs[path] = self._processes.submit(_store_chunk, chunk, path)

    def _give_up(self, unless: Collection[Path]) -> None:
        for path in [path for path in self._jobs if path not in unless]:
            self._jobs.pop(path).cancel()


class _Process(SpawnProcess):
    """A process that the pool can end, though it does not hear SIGTERM."""

    def terminate(self) -> None:
        """End it; the pool does so to all when one has died."""
        self.kill()


class _Context(SpawnContext):
    Process = _Process


def _end(processes: ProcessPoolExecutor, patience: float) -> None:
    """Leave no process behind, also where one hangs."""
    left = list((processes._processes or {}).values())  # there is no other way to one that hangs
    processes.shutdown(wait=False, cancel_futures=True)
    until = time.monotonic() + patience
    for process in left:
        process.join(max(0.0, until - time.monotonic()))
        if process.is_alive():
            process.kill()


def _store_once(encoder: Encoder, chunk: Chunk, path: Path) -> None:
    """Encode a chunk, unless another process has done it or is just doing it."""
    with store.locked(path, _COURTESY):
        if Shard.open(path, chunk.place) is None:
            encoder.store_chunk(chunk, path)


def _made(path: Path, chunk: Chunk) -> Shard:
    shard = Shard.open(path, chunk.place)
    if shard is None:
        raise DataError("the cache does not keep what is written", where=path, do="Set data.cache to another folder.")
    return shard


_encoder: Encoder | None = None


def _start(encoder: Encoder) -> None:
    global _encoder  # noqa: PLW0603 - the one thing a worker process keeps
    _encoder = encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.nice(_NICENESS)
    for meant_for_the_run in (signal.SIGINT, signal.SIGTERM):  # which may want to end in order
        signal.signal(meant_for_the_run, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave no process behind when the parent is killed: its queue would never say so."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _store_chunk(chunk: Chunk, path: Path) -> None:
    assert _encoder is not None  # set by _start
    _store_once(_encoder, chunk, path)
