"""A command in several processes, as `torchrun` starts them, and none of them left behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from danlu.errors import RunError

_LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_GRACE = 30.0
"""Seconds that processes have to end when they are asked to."""
_RAISED = re.compile(r"(\[rank\d+\]: )?[A-Za-z_][\w.]*(Error|Exception)(: |$)")
_AT_LEAST, _TIMES = 300.0, 20.0


def patience(seconds: float) -> float:
    """How long to wait for what takes one process so many seconds; processes that wait for each other never end."""
    return _AT_LEAST + _TIMES * seconds


def launch(arguments: Sequence[str], count: int, seconds: float, log: Path) -> None:
    """Run `danlu` in several processes that know of each other.

    Args:
        arguments: of the command line.
        count: processes.
        seconds: after which they are ended.
        log: where to write what they say.

    Raises:
        RunError: when they fail, with what they said, or do not end.
    """
    runner = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count))
    environment = {name: value for name, value in os.environ.items() if name not in _LAUNCHED}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    with log.open("wb") as said:
        process = subprocess.Popen([*runner, "-m", "danlu", *arguments], stdout=said, stderr=said, env=environment)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise RunError(
                f"{count} processes did not end within {seconds:.0f} seconds; they wait for each other"
            ) from None
        finally:
            _end(process)
    if status != 0:
        raise RunError(f"{count} processes failed: {_told(log, status)}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those it has started, where they have not ended by themselves."""
    if process.poll() is not None:
        return
    started = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in started:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue


def _told(log: Path, status: int) -> str:
    """What the first process that failed said was wrong: Danlu's sentence, else the end of a traceback."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    own = [line.removeprefix("danlu: ") for line in lines if line.startswith("danlu: ")]
    raised = [line for line in lines if _RAISED.match(line)]
    return (own[:1] or raised[:1] or [f"status {status}"])[0].rstrip(".")
