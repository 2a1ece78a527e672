"""Checkpoints: safetensors and JSON, whole or not at all.

A checkpoint is written beside its final name, forced to disk, and renamed; a crash or a full disk at any moment leaves
the ones before as they were. A manifest holds every file's size and checksum, and reading begins by comparing them. No
pickle is written or read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from danlu.errors import CheckpointError, RunError

_MANIFEST, _STATE = "manifest.json", "state.json"
_UNFINISHED, _REMOVED = ".unfinished-", ".removed-"
_VERSION = 1


@dataclass(frozen=True)
class Snapshot:
    """What a run is made of at one moment.

    Attributes:
        step: updates done.
        tensors: by file, then by name.
        state: everything else, as JSON.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one run: ``step-N`` folders, and links `last` and `best` to two of them.

    Args:
        folder: where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, snapshot: Snapshot, *, best: bool, keep: int) -> Path:
        """Write a snapshot; then point `last` (and `best`) at it and remove all but the newest `keep` and the best.

        Raises:
            RunError: when it cannot be written, a full disk say; what was there before stays.
        """
        final = self.folder / f"step-{snapshot.step:08d}"
        unfinished = self.folder / f"{_UNFINISHED}{final.name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            _write(unfinished, snapshot)
            self._remove(final)
            os.replace(unfinished, final)
            _sync(self.folder)
            for name in ("last", "best") if best else ("last",):
                self._point(name, final)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            last = self.steps()
            before = f"The checkpoint of step {last[-1]} is whole." if last else "There is none before it."
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            raise RunError(
                f"the checkpoint of step {snapshot.step} could not be written: {reason}", where=final, do=before
            ) from error
        self._retain(keep)
        return final

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, in order."""
        names = (entry.name for entry in self.folder.glob("step-*"))
        return sorted(int(name.removeprefix("step-")) for name in names if name.removeprefix("step-").isdigit())

    def load(self, step: int | None = None) -> Snapshot:
        """A checkpoint, the last by default, after comparing every file with its checksum.

        Raises:
            CheckpointError: when there is none, or a file of it is absent, cut short or altered; the one before is
            named.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError("there is no checkpoint", where=self.folder, do="Remove the run and train anew.")
        wanted = steps[-1] if step is None else step
        if wanted not in steps:
            raise CheckpointError(
                f"there is no checkpoint of step {wanted}", where=self.folder, do=f"There are: {steps}."
            )
        folder = self.folder / f"step-{wanted:08d}"
        earlier = [s for s in steps if s < wanted]
        offer = f"Resume from the one before with --step {earlier[-1]}." if earlier else "There is none before it."
        verify(folder, offer)
        state = json.loads((folder / _STATE).read_text())
        tensors = {file.stem: load_file(file) for file in sorted(folder.glob("*.safetensors"))}
        return Snapshot(wanted, tensors, state)

    def forget_after(self, step: int, best: int | None) -> None:
        """Remove what is later than a step that a run is taken up from again, and what a crash left behind.

        Args:
            step: the last one from now on.
            best: the best up to there, if there is one.
        """
        for later in (s for s in self.steps() if s > step):
            self._remove(self.folder / f"step-{later:08d}")
        for rest in (*self.folder.glob(f"{_UNFINISHED}step-*"), *self.folder.glob(f"{_REMOVED}step-*")):
            shutil.rmtree(rest)
        self._point("last", self.folder / f"step-{step:08d}")
        if best is None:
            (self.folder / "best").unlink(missing_ok=True)
        else:
            self._point("best", self.folder / f"step-{best:08d}")

    def _point(self, name: str, target: Path) -> None:
        link = self.folder / f"{_UNFINISHED}{name}"
        link.unlink(missing_ok=True)
        link.symlink_to(target.name)
        os.replace(link, self.folder / name)

    def _retain(self, keep: int) -> None:
        best = (self.folder / "best").resolve().name if (self.folder / "best").exists() else ""
        for step in self.steps()[:-keep]:
            if f"step-{step:08d}" != best:
                self._remove(self.folder / f"step-{step:08d}")

    def _remove(self, folder: Path) -> None:
        """Take a checkpoint out of sight in one go, then its files one by one: a crash leaves none half there."""
        if folder.exists():
            hidden = self.folder / f"{_REMOVED}{folder.name}"
            shutil.rmtree(hidden, ignore_errors=True)
            os.replace(folder, hidden)
            shutil.rmtree(hidden, ignore_errors=True)


def verify(folder: Path, do: str = "") -> None:
    """Compare every file of a checkpoint with its manifest.

    Raises:
        CheckpointError: naming the first file that is absent, cut short or altered.
    """
    try:
        text = (folder / _MANIFEST).read_text(encoding="utf-8")
        manifest = json.loads(text)
        expected = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in manifest["files"].items()}
        version = manifest["version"]
        if _STATE not in expected or text != _text(manifest):
            raise ValueError("it is not as it was written")
    except FileNotFoundError:
        raise CheckpointError("the manifest is absent", where=folder / _MANIFEST, do=do) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError("the manifest is altered", where=folder / _MANIFEST, do=do) from error
    if version != _VERSION:
        raise CheckpointError(
            f"its format is {version}, not {_VERSION}", where=folder, do="Use the Danlu that wrote it."
        )
    for name, (size, digest) in expected.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError("the file is absent", where=file, do=do)
        if file.stat().st_size != size:
            raise CheckpointError(f"the file is cut short: {file.stat().st_size} of {size} bytes", where=file, do=do)
        if _digest(file) != digest:
            raise CheckpointError("the file is altered: its checksum differs", where=file, do=do)


def _write(folder: Path, snapshot: Snapshot) -> None:
    for name, tensors in snapshot.tensors.items():
        save_file({key: t.detach().contiguous() for key, t in tensors.items()}, folder / f"{name}.safetensors")
    (folder / _STATE).write_text(_text(snapshot.state))
    entries = {f.name: {"bytes": f.stat().st_size, "sha256": _digest(f)} for f in sorted(folder.iterdir())}
    (folder / _MANIFEST).write_text(_text({"version": _VERSION, "files": entries}))
    for file in folder.iterdir():
        _sync(file)
    _sync(folder)


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=1)


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
