"""The token cache: documents are encoded once, a chunk at a time, by one process or several.

A chunk's shard is named by a hash of its content, the tokenizer and the options. So a run that finds a shard need not
parse the documents, an appended document costs one chunk, and runs that share a folder share the work.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.connection import wait
from pathlib import Path

from danlu.data import store
from danlu.data.encoder import Encoder, Shard
from danlu.data.formats import Chunk, Place, read_chunks
from danlu.data.template import Template
from danlu.errors import DataError, RunError

WORTH_PROCESSES = 32 << 20
"""Bytes of files below which one process, with the tokenizer's own threads, is done before others have started."""
_JOBS_PER_PROCESS = 2  # chunks sent ahead of the oldest unfinished one


def tokenize(
    files: Sequence[Path],
    template: Template,
    encoder: Encoder,
    *,
    cache: str | Path | None = None,
    workers: int = 0,
    worth_processes: int = WORTH_PROCESSES,
) -> list[Shard]:
    """The documents of some files as shards of the cache, in order; what is not there yet is made.

    Args:
        files: as `danlu.data.files.resolve` gives them.
        template: what makes a text of a row.
        encoder: what makes tokens of a text.
        cache: the cache's folder; by default `store.cache_folder`'s.
        workers: processes to encode with; 0 is as many as there are cores. The result does not depend on it.
        worth_processes: bytes of files from which more than one process is used.

    Raises:
        DataError: when a file cannot be read or the cache not be written.
        RunError: when a process dies.
    """
    folder = store.cache_folder(cache)
    count = (workers or os.cpu_count() or 1) if _num_bytes(files) >= worth_processes else 1
    found: list[tuple[Path, Place, Shard | None]] = []
    jobs: deque[Future[None]] = deque()
    try:
        with _processes(encoder, count) as pool:
            for chunk in read_chunks(files, template):
                path = store.entry(folder, encoder.key(chunk))
                shard = Shard.open(path, chunk.place)
                found.append((path, chunk.place, shard))
                if shard is not None:
                    continue
                if pool is None:
                    encoder.store_chunk(chunk, path)
                    continue
                jobs.append(pool.submit(_store_chunk, chunk, path))
                if len(jobs) > _JOBS_PER_PROCESS * count:
                    jobs.popleft().result()
            for job in jobs:
                job.result()
    except BrokenProcessPool as fault:
        do = "Set data.workers=1; a script of your own must start from `if __name__ == '__main__':`."
        raise RunError("a process that encodes documents died", do=do) from fault
    return [shard or _made(path, place) for path, place, shard in found]


def _num_bytes(files: Sequence[Path]) -> int:
    try:
        return sum(file.stat().st_size for file in files)
    except OSError as fault:
        raise DataError("the file cannot be read", where=fault.filename, do="Check it and its rights.") from fault


def _made(path: Path, place: Place) -> Shard:
    shard = Shard.open(path, place)
    if shard is None:
        raise DataError("the cache does not keep what is written", where=path, do="Set data.cache to another folder.")
    return shard


def _processes(encoder: Encoder, count: int) -> AbstractContextManager[ProcessPoolExecutor | None]:
    """Processes that each hold the encoder; they start as work arrives, and never as copies of a threaded process."""
    if count == 1:
        return nullcontext()
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, context, initializer=_start, initargs=(encoder,))


_encoder: Encoder | None = None


def _start(encoder: Encoder) -> None:
    global _encoder  # noqa: PLW0603 - the one thing a worker process keeps
    _encoder = encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave no process behind when the parent is killed: its queue would never say so."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _store_chunk(chunk: Chunk, path: Path) -> None:
    assert _encoder is not None  # set by _start
    _encoder.store_chunk(chunk, path)
