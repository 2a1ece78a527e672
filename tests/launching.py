"""Runs that `torchrun` starts, as a user would, and what befalls their processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

PATIENCE = 120.0
"""Seconds after which a launch hangs."""


class Launch:
    """A command on several ranks of this machine.

    Args:
        arguments: of `danlu`.
        size: how many ranks.
        restarts: how often `torchrun` may begin anew when one is lost.
        patience: how long a rank waits for the others.
    """

    def __init__(self, *arguments: str | Path, size: int = 2, restarts: int = 0, patience: str = "1h") -> None:
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={size}", f"--max-restarts={restarts}"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", *torchrun, "-m", "danlu", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONFAULTHANDLER": "1", "OMP_NUM_THREADS": "1", "DANLU_PATIENCE": patience},
        )
        self._until = time.monotonic() + PATIENCE

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in (*self._children(), psutil.Process(self._process.pid)) if self.alive else ():
            process.kill()
        self._process.communicate()

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def wait(self, until: Callable[[], bool]) -> None:
        """Until something is so, or it has ended."""
        while self.alive and not until():
            time.sleep(0.002)
            if time.monotonic() > self._until:
                self.fail()

    def send(self, which: signal.Signals, rank: int | None = None) -> bool:
        """Send a signal to a rank, or to `torchrun` itself; whether there is one to take it."""
        if rank is None:
            self._process.send_signal(which)
            return True
        for child in self._children():
            try:
                if child.environ().get("RANK") == str(rank):
                    child.send_signal(which)
                    return True
            except psutil.Error:  # it has just ended
                continue
        return False

    def end(self) -> tuple[int, str, str]:
        """Its status, and what it said, when it has ended by itself."""
        try:
            out, err = self._process.communicate(timeout=max(1.0, self._until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.fail()
            raise
        return self._process.returncode, out, err

    def fail(self) -> None:
        """Have every rank say where it hangs.

        Raises:
            AssertionError: with what they say.
        """
        for child in self._children():
            child.send_signal(signal.SIGABRT)
        time.sleep(1)
        self._process.kill()
        _, err = self._process.communicate()
        raise AssertionError(f"it hangs:\n{err}")

    def _children(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
