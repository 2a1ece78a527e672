"""One process (or one group of ranks) at a time works in a run's directory."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from danlu.engine.ranks import ALONE, Ranks
from danlu.errors import RunError

LOCK = ".lock"
"""The name of the file in a run's directory."""
_ABSENT = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""What a file system answers that has no locks."""
_held: set[IO[str]] = set()


@contextmanager
def locked(run: Path, ranks: Ranks = ALONE) -> Iterator[str | None]:
    """Within, the run's directory is this process's; of several ranks, the leading one holds it for all.

    The lock is the system's own (flock), so it ends with its owner, however that ends; what the file says is only for
    people to read.

    Args:
        run: the directory, which is there.
        ranks: the processes of the run.

    Yields:
        None, or on every rank a sentence that says why there is no lock: a file system may have none.

    Raises:
        RunError: on every rank, when another process works there, or no lock can be made.
    """
    file: IO[str] | None = None

    def take() -> str | None:
        nonlocal file
        file, note = _taken(run)
        return note

    try:
        yield ranks.lead(take)
    finally:
        if file is not None and not file.closed:  # as it is in a forked child
            _give_back(file, run / LOCK)


def _taken(run: Path) -> tuple[IO[str] | None, str | None]:
    """The locked file, or why there is none."""
    path = run / LOCK
    while True:
        try:
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise RunError(f"the run directory cannot be locked: {error.strerror}", where=run) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(file, path):  # the owner before removed it as it ended
                file.close()
                continue
        except OSError as error:
            raised = _refusal(error, run, file)
            file.close()
            if raised is None:
                what = f"{run} is not locked, since its file system has no locks"
                return None, f"{what}: let no second process work in it"
            raise raised from None
        _held.add(file)
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
        with suppress(OSError):  # a full disk: it is only for people to read
            file.truncate(0)
            os.write(file.fileno(), json.dumps(owner).encode())  # past the buffer, which would be written at its end
        return file, None


def _refusal(error: OSError, run: Path, file: IO[str]) -> RunError | None:
    if error.errno in (errno.EAGAIN, errno.EACCES):
        return _in_use(run, file)
    if error.errno in _ABSENT:
        return None
    return RunError(f"the run directory cannot be locked: {error.strerror}", where=run)


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _in_use(run: Path, file: IO[str]) -> RunError:
    file.seek(0)
    owner: dict[str, Any] = {}
    with suppress(ValueError):  # its owner is just about to write into it
        owner = json.loads(file.read())
    if not {"pid", "host", "since"} <= owner.keys():
        return RunError("the run directory is in use by another process", where=run, do="Wait for it, or end it.")
    since = time.localtime(owner["since"])
    today = time.strftime("%Y-%m-%d", since) == time.strftime("%Y-%m-%d")
    told = time.strftime("%H:%M" if today else "%Y-%m-%d %H:%M", since)
    here = owner["host"] == socket.gethostname()
    return RunError(
        f"the run directory is in use by process {owner['pid']} (since {told} on host {owner['host']})",
        where=run,
        do=f"Wait for it, or end it: kill {owner['pid']}." if here else "Wait for it, or end it there.",
    )


def _give_back(file: IO[str], path: Path) -> None:
    _held.discard(file)
    with suppress(OSError):  # while it is still locked: whoever waits for it sees that it is gone, and makes another
        if _is_at(file, path):
            path.unlink()
    file.close()


def _let_go() -> None:
    """In a forked child: the lock is the parent's, and must not outlive it here."""
    for file in _held:
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
