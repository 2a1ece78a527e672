"""Processes that form a group by gloo, for tests of what ranks do together."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = 120.0
"""Seconds that all ranks together may take."""


def run_ranks(function: Callable[..., Any], size: int, *args: Any) -> list[Any]:
    """What a function of a module gives on each of so many ranks, called with these arguments.

    Within, the process group is there (`torch.distributed.get_rank()` and so on), there is one thread, and warnings are
    errors, as in tests.

    Raises:
        AssertionError: with a rank's traceback, when it failed; the others are ended.
        TimeoutError: when they were not done in time.
    """
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ranks: dict[Connection, SpawnProcess] = {}
        for rank in range(size):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_rank, args=(rank, size, folder, theirs, function, args), daemon=True)
            process.start()
            theirs.close()
            ranks[ours] = process
        try:
            return _answers(list(ranks), time.monotonic() + PATIENCE)
        finally:
            for connection, process in ranks.items():
                process.kill()
                process.join()
                connection.close()


def _answers(connections: list[Connection], until: float) -> list[Any]:
    found: dict[int, Any] = {}
    while waiting := [c for rank, c in enumerate(connections) if rank not in found]:
        ready = wait(waiting, until - time.monotonic())
        if not ready:
            raise TimeoutError(f"{len(waiting)} of {len(connections)} ranks were not done in {PATIENCE:.0f} s")
        for connection in ready:
            rank = connections.index(connection)  # type: ignore[arg-type]
            try:
                fault, found[rank] = connection.recv()  # type: ignore[union-attr]
            except EOFError:
                raise AssertionError(f"rank {rank} ended without a word") from None
            if fault is not None:
                raise AssertionError(f"rank {rank} failed:\n{fault}")
    return [found[rank] for rank in range(len(connections))]


def _rank(
    rank: int, size: int, folder: str, answer: Connection, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    """What a process does. It stays until it is ended from outside: another may still talk to it."""
    try:
        torch.set_num_threads(1)
        local = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
        os.environ.update({name: str(value) for name, value in local.items()})
        store = dist.FileStore(str(Path(folder, "store")), size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=PATIENCE))
        warnings.simplefilter("error")
        answer.send((None, function(*args)))
    except BaseException:
        answer.send((traceback.format_exc(), None))
    finally:
        with suppress(EOFError):
            answer.recv()
