"""Which files a recipe means, in a fixed order, and what form each has."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from danlu.data.hub import hub_files, is_hub_name
from danlu.errors import DataError

Format = Literal["text", "lines", "json", "csv", "tsv", "parquet", "arrow"]
Compression = Literal["gzip", "zstd"]

_FORMATS: dict[str, Format] = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
FOLDER_SUFFIXES = frozenset({".txt", ".md", ".py", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow"})
"""What is read of a folder, compressed or not; a file named outright, or by a glob, may end as it likes.

Not .json: beside other data such a file mostly says something about them.
"""
_KNOWN = FOLDER_SUFFIXES | _FORMATS.keys() | _COMPRESSIONS.keys()


@dataclass(frozen=True)
class Form:
    """How a file is to be read.

    Attributes:
        format: what it holds: one text, or rows.
        compression: what it was packed with, if it was.
    """

    format: Format
    compression: Compression | None = None


def form_of(path: Path) -> Form:
    """A file's form, by the end of its name; what has no other is text.

    Example:
        >>> form_of(Path("a.jsonl")), form_of(Path("b.CSV.gz")).compression, form_of(Path("README"))
        (Form(format='lines', compression=None), 'gzip', Form(format='text', compression=None))
    """
    compression = _COMPRESSIONS.get(path.suffix.lower())
    suffix = path.with_suffix("").suffix if compression else path.suffix
    return Form(_FORMATS.get(suffix.lower(), "text"), compression)


def resolve(patterns: str | Sequence[str]) -> list[Path]:
    """The files that some paths, globs (``**`` too), folders and names of hub data sets stand for.

    Patterns keep their order, and what one of them stands for is sorted by name. A folder gives, at any depth, its
    files that end in one of `FOLDER_SUFFIXES`, hidden ones left out. A file that is named twice is read once.

    Raises:
        DataError: when a pattern stands for nothing, or for one empty file.
    """
    listed = [patterns] if isinstance(patterns, str) else patterns
    found: dict[Path, Path] = {}
    for pattern in listed:
        try:
            for path in _expand(pattern):
                found.setdefault(path.resolve(), path)
        except (OSError, RuntimeError) as fault:
            what = f"the path cannot be read ({getattr(fault, 'strerror', None) or fault})"
            raise DataError(what, where=pattern, do="Check it and its rights.") from fault
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
    if not files and path.suffix.lower() not in _KNOWN and is_hub_name(pattern):
        return hub_files(pattern)
    if not files:
        what = "no file matches" if glob.has_magic(pattern) else "there is no such file"
        raise DataError(what, where=pattern, do="Check the path; it is relative to the current directory.")
    return files


def _fail(fault: OSError) -> None:
    raise fault


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder, onerror=_fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            inner = path.with_suffix("") if path.suffix.lower() in _COMPRESSIONS else path
            if not name.startswith(".") and inner.suffix.lower() in FOLDER_SUFFIXES:
                yield path
