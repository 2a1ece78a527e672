"""Which files a recipe means: files, globs and folders, in a fixed order."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from danlu.errors import DataError

Kind = Literal["text", "jsonl", "parquet"]

_KINDS: dict[str, Kind] = {".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
FOLDER_SUFFIXES = frozenset({".txt", ".md", ".py", ".jsonl", ".parquet"})
"""What is read of a folder; a file named outright, or by a glob, may end as it likes."""


def kind_of(path: Path) -> Kind:
    """How a file is read, by the end of its name: JSON lines, Parquet, and anything else as text.

    Example:
        >>> kind_of(Path("a.jsonl")), kind_of(Path("README"))
        ('jsonl', 'text')
    """
    return _KINDS.get(path.suffix.lower(), "text")


def resolve(patterns: str | Sequence[str]) -> list[Path]:
    """The files that some paths, globs (``**`` too) and folders stand for.

    Patterns keep their order, and what one of them stands for is sorted by name. A folder gives, at any depth, its
    files that end in one of `FOLDER_SUFFIXES`, hidden ones left out. A file that is named twice is read once.

    Raises:
        DataError: when a pattern stands for nothing, or for one empty file.
    """
    listed = [patterns] if isinstance(patterns, str) else patterns
    found: dict[Path, Path] = {}
    for pattern in listed:
        for path in _expand(pattern):
            found.setdefault(path.resolve(), path)
    if not found:
        raise DataError("no data file is named", do="Give a file, a glob or a folder.")
    return list(found.values())


def _expand(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        files = sorted(_walk(path))
        if not files:
            known = ", ".join(sorted(FOLDER_SUFFIXES))
            raise DataError("the folder has no file to read", where=path, do=f"It is searched for {known} files.")
        return files
    if path.exists():
        if path.stat().st_size == 0 and path.is_file():
            raise DataError("the file is empty", where=path, do="Name a file that holds documents.")
        return [path]
    files = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))
    if not files:
        what = "no file matches" if glob.has_magic(pattern) else "there is no such file"
        raise DataError(what, where=pattern, do="Check the path; it is relative to the current directory.")
    return files


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in FOLDER_SUFFIXES:
                yield Path(parent, name)
