"""The folders of a run's checkpoints: one for each step, and links to two of them.

Each is renamed into place and renamed out of sight, so that a crash at any moment leaves none half there.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from danlu.engine.manifest import sync

_UNFINISHED, _REMOVED = ".unfinished-", ".removed-"


def all_steps(folder: Path) -> list[int]:
    """The steps that there are checkpoints of, in order."""
    names = (entry.name for entry in folder.glob("step-*"))
    return sorted(int(name.removeprefix("step-")) for name in names if name.removeprefix("step-").isdigit())


def of_step(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is, or would be."""
    return folder / f"step-{step:08d}"


def unfinished(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is being written."""
    return folder / f"{_UNFINISHED}{of_step(folder, step).name}"


def begin(folder: Path, step: int) -> None:
    """Make the folder that a checkpoint is written in, empty."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(unfinished(folder, step), ignore_errors=True)
    unfinished(folder, step).mkdir()


def finish(folder: Path, step: int, *, best: bool, keep: int) -> None:
    """Put what was written in its place, point `last` (and `best`) at it, keep the newest and the best."""
    sync(unfinished(folder, step))
    _remove(of_step(folder, step))
    os.replace(unfinished(folder, step), of_step(folder, step))
    sync(folder)
    for name in ("last", "best") if best else ("last",):
        _point(folder, name, step)
    _retain(folder, keep)


def abandon(folder: Path, step: int) -> None:
    """Take away what was begun."""
    shutil.rmtree(unfinished(folder, step), ignore_errors=True)


def forget_after(folder: Path, step: int, best: int | None, keep: int) -> None:
    """Remove what is later than a step, and what a crash left behind; point `last` at it, and `best` at the best."""
    for later in (s for s in all_steps(folder) if s > step):
        _remove(of_step(folder, later))
    for rest in (*folder.glob(f"{_UNFINISHED}step-*"), *folder.glob(f"{_REMOVED}step-*")):
        shutil.rmtree(rest)
    _point(folder, "last", step)
    if best is None:
        (folder / "best").unlink(missing_ok=True)
    else:
        _point(folder, "best", best)
    _retain(folder, keep)


def _retain(folder: Path, keep: int) -> None:
    """Remove all but the newest and the best."""
    kept = (folder / "best").resolve().name if (folder / "best").exists() else ""
    for old in all_steps(folder)[:-keep]:
        if of_step(folder, old).name != kept:
            _remove(of_step(folder, old))


def _point(folder: Path, name: str, step: int) -> None:
    link = folder / f"{_UNFINISHED}{name}"
    link.unlink(missing_ok=True)
    link.symlink_to(of_step(folder, step).name)
    os.replace(link, folder / name)


def _remove(checkpoint: Path) -> None:
    """Take a checkpoint out of sight in one go, then its files one by one."""
    if checkpoint.exists():
        hidden = checkpoint.with_name(f"{_REMOVED}{checkpoint.name}")
        shutil.rmtree(hidden, ignore_errors=True)
        os.replace(checkpoint, hidden)
        shutil.rmtree(hidden, ignore_errors=True)
