"""What a checkpoint holds, and how it is known to be whole.

The manifest names every other file with its size and checksum, the format, and the versions that wrote it. Its last
entry is the checksum of all of its own text before, so there is no byte of a checkpoint that none covers.

References:
    Collet, 2019, "xxHash", https://github.com/Cyan4973/xxHash (XXH3)
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import xxhash

from danlu.errors import CheckpointError

FORMAT = 2
"""Of checkpoints as they are written now. The first had no checksum of the manifest, and the files of one process."""

_MANIFEST = "manifest.json"
_OWN = "sha256"


@dataclass(frozen=True)
class Entry:
    """A file as it was written.

    Attributes:
        bytes: its size.
        xxh3: its checksum: 128 bits, at the speed of memory, since a run goes on while it is taken.
    """

    bytes: int
    xxh3: str

    @staticmethod
    def of(file: Path) -> Entry:
        """Of a file that is there."""
        with file.open("rb") as opened:
            return Entry(file.stat().st_size, hashlib.file_digest(opened, xxhash.xxh3_128).hexdigest())


def write_manifest(folder: Path, files: Mapping[str, Entry]) -> None:
    """Name a checkpoint's files."""
    entries = {name: {"bytes": entry.bytes, "xxh3": entry.xxh3} for name, entry in sorted(files.items())}
    body = {"version": FORMAT, "written_by": _versions(), "files": entries}
    (folder / _MANIFEST).write_text(_signed(body), encoding="utf-8")
    sync(folder / _MANIFEST)


def read_manifest(folder: Path, do: str = "") -> dict[str, Entry]:
    """The files that a checkpoint should hold.

    Args:
        folder: the checkpoint.
        do: what an error offers.

    Raises:
        CheckpointError: when there is no manifest, it is not as it was written, or it is of another format.
    """
    file = folder / _MANIFEST
    try:
        text = file.read_text(encoding="utf-8")
        manifest = json.loads(text)
        found = manifest["version"]
        if found != 1 or _OWN in manifest:  # the first format's manifest had no checksum
            body = {key: value for key, value in manifest.items() if key != _OWN}
            if text != _signed(body):
                raise ValueError("it is not as it was written")
        if found == FORMAT:
            return {name: Entry(int(each["bytes"]), str(each["xxh3"])) for name, each in manifest["files"].items()}
        writer = manifest.get("written_by", {}).get("danlu")
    except FileNotFoundError:
        raise CheckpointError("the manifest is absent", where=file, do=do) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError("the manifest is altered", where=file, do=do) from error
    by = f", written by Danlu {writer}" if writer else ""
    raise CheckpointError(
        f"its format is {found}{by}, not {FORMAT}", where=folder, do="Use the version of Danlu that wrote it."
    )


def require_whole(file: Path, entry: Entry, do: str = "") -> None:
    """Compare a file with what was written.

    Raises:
        CheckpointError: when it is absent, cut short or altered.
    """
    if not file.is_file():
        raise CheckpointError("the file is absent", where=file, do=do)
    if (size := file.stat().st_size) != entry.bytes:
        how = f"cut short: {size} of" if size < entry.bytes else f"altered: it has {size}, not"
        raise CheckpointError(f"the file is {how} {entry.bytes} bytes", where=file, do=do)
    if Entry.of(file) != entry:
        raise CheckpointError("the file is altered: its checksum differs", where=file, do=do)


def sync(path: Path) -> None:
    """Force a file, or a folder's names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _signed(body: Mapping[str, Any]) -> str:
    own = hashlib.sha256(json.dumps(body, indent=1).encode()).hexdigest()
    return json.dumps({**body, _OWN: own}, indent=1)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("danlu", "torch", "safetensors"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from its sources
            found[package] = "unknown"
    return found
