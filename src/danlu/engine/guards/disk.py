"""Room for checkpoints, asked for before it is needed."""

from __future__ import annotations

import shutil
from pathlib import Path

from danlu.errors import RunError
from danlu.units import memory


def free(folder: Path) -> int:
    """Bytes that this user may still write where a folder is, or will be; quotas are not known here."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def room(folder: Path, needed: int) -> None:
    """See that a checkpoint has room.

    Args:
        folder: where it goes.
        needed: its bytes.

    Raises:
        RunError: when the disk has less.
    """
    if (left := free(folder)) < needed:
        what = f"a checkpoint needs {memory(needed)}, and the disk has {memory(left)} left"
        raise RunError(what, where=folder, do="Free some space, then: danlu resume.")


def crowded(folder: Path, needed: int, keep: int, present: int = 0) -> str | None:
    """A sentence, when the disk has no room for all checkpoints that there will be at once.

    Args:
        folder: where they go.
        needed: the bytes of one.
        keep: how many of the newest are kept; the best may be one more, and so is the one being written.
        present: how many are there already.
    """
    count = max(1, keep + 2 - present)
    if (left := free(folder)) >= count * needed:
        return None
    return (
        f"{folder} will need room for {count} more checkpoint{'s' if count > 1 else ''} of {memory(needed)}, "
        f"{memory(count * needed)} together, and the disk has {memory(left)} left: free some, or lower "
        "run.keep_checkpoints"
    )
