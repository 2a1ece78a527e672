"""Chunks: neighbouring documents of a file, known by where they lie and read when they are wanted."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from danlu.errors import DataError

Kind = Literal["text", "lines", "table", "parquet", "arrow"]
"""How a chunk is read: whole files, JSON a line, the rows of a CSV file as JSON a line, or rows of a columnar file."""

Stamp = tuple[int, int]
"""A file's size in bytes and when it was last changed, in nanoseconds."""


class FileChangedError(DataError):
    """A file that is no longer what was indexed."""


@dataclass(frozen=True)
class Place:
    """Where a chunk's records lie: consecutive lines or rows of one file, or the first lines of several files.

    Attributes:
        paths: the file, or one a record.
        first: the line of the first record; with `lines`, its number among all records of the file.
        lines: where records and lines do not go together, the file that keeps each record's line.
    """

    paths: tuple[str, ...]
    first: int = 1
    lines: str | None = None

    def of(self, record: int) -> str:
        """The ``file:line`` of a record.

        Example:
            >>> Place(("a.jsonl",), 7).of(2), Place(("a.txt", "b.txt"), 1).of(1)
            ('a.jsonl:9', 'b.txt:1')
        """
        if len(self.paths) > 1:
            return f"{self.paths[record]}:{self.first}"
        line = self.first + record
        return f"{self.paths[0]}:{line if self.lines is None else _lines(self.lines, line, 1)[0]}"

    def each(self, count: int) -> list[str]:
        """The ``file:line`` of the first so many records."""
        if self.lines is None or len(self.paths) > 1:
            return [self.of(record) for record in range(count)]
        return [f"{self.paths[0]}:{line}" for line in _lines(self.lines, self.first, count)]


@dataclass(frozen=True)
class Chunk:
    """Neighbouring documents, not yet read: what is hashed, encoded and stored as one.

    Attributes:
        kind: how they are read.
        place: where a person finds them.
        files: what is read: the person's own files, or what was spooled of one.
        start: its first byte or row; 0 of whole files.
        stop: one past its last.
        num_documents: how many there are, whatever becomes of them.
        num_bytes: their bytes; of columnar files, before compression.
        digest: a hash of the content alone: equal chunks of two files have the same one.
        stamp: of a columnar file, whose chunks have no hash that could be checked alone.
    """

    kind: Kind
    place: Place
    files: tuple[str, ...]
    start: int
    stop: int
    num_documents: int
    num_bytes: int
    digest: str
    stamp: Stamp | None = None

    def records(self) -> list[bytes]:
        """The bytes of each document of whole files or lines.

        Raises:
            DataError: when a file cannot be read.
            FileChangedError: when it is no longer what was indexed.
        """
        if self.kind == "text":
            found = [_read(file) for file in self.files]
            digest = digest_of_files([digest_of(content) for content in found])
        else:
            content = _read(self.files[0], self.start, self.stop)
            found = content.removesuffix(b"\n").split(b"\n")
            digest = digest_of(content)
        if digest.hex() != self.digest:
            raise self.changed()
        return found

    def check(self) -> None:
        """That a columnar file is still the one that was indexed.

        Raises:
            FileChangedError: when it is not.
        """
        if stamp_of(self.files[0]) != self.stamp:
            raise self.changed()

    def changed(self) -> FileChangedError:
        """Its file has been changed."""
        do = "Start again; it is read anew."
        return FileChangedError("the file has changed since it was indexed", where=self.place.paths[0], do=do)


def digest_of(content: bytes | bytearray | memoryview) -> bytes:
    """A hash of some bytes."""
    return hashlib.blake2b(content, digest_size=16).digest()


def digest_of_files(digests: Sequence[bytes]) -> bytes:
    """A hash of whole files, from the hash of each."""
    return digest_of(b"".join(digests))


def stamp_of(path: str | Path) -> Stamp:
    """A file's size and time.

    Raises:
        DataError: when it is not there.
    """
    try:
        status = Path(path).stat()
    except OSError as fault:
        raise unreadable(path, fault) from fault
    return status.st_size, status.st_mtime_ns


def unreadable(path: str | Path, fault: OSError) -> DataError:
    """A file that the system does not give."""
    return DataError(f"the file cannot be read ({fault.strerror or fault})", where=path, do="Check it and its rights.")


def first_line(fault: Exception) -> str:
    """What an exception says, in one line."""
    return (str(fault).strip() or type(fault).__name__).splitlines()[0].rstrip(".")


def _read(path: str, start: int = 0, stop: int | None = None) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read() if stop is None else file.read(stop - start)
    except OSError as fault:
        raise unreadable(path, fault) from fault


def _lines(lines: str, first: int, count: int) -> list[int]:
    """The lines of some records, from the file that keeps one integer each."""
    try:
        found: list[int] = np.fromfile(lines, "<i8", count, offset=8 * (first - 1)).tolist()
    except OSError:
        found = []
    if len(found) < count:
        raise DataError("the cache has lost a file", where=lines, do="Start again; it is made anew.")
    return found
