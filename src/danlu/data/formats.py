"""Text, JSONL and Parquet files, read a chunk of documents at a time."""

from __future__ import annotations

import hashlib
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from danlu.data.files import kind_of
from danlu.data.template import Template
from danlu.errors import DataError, did_you_mean

_LEAST_BYTES = 1 << 19
_MEAN_BYTES = 3 << 19
_MOST_BYTES = 1 << 23
_PARQUET_ROWS = 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Place:
    """Where a chunk's records lie: consecutive rows of one file, or the first lines of several."""

    paths: tuple[str, ...]
    first_line: int

    def of(self, record: int) -> str:
        """The ``file:line`` of a record.

        Example:
            >>> Place(("a.jsonl",), 7).of(2), Place(("a.txt", "b.txt"), 1).of(1)
            ('a.jsonl:9', 'b.txt:1')
        """
        if len(self.paths) > 1:
            return f"{self.paths[record]}:{self.first_line}"
        return f"{self.paths[0]}:{self.first_line + record}"


@dataclass(frozen=True)
class Chunk:
    """Neighbouring documents, not yet looked into: what is hashed, encoded and stored as one.

    Attributes:
        records: the bytes of each document.
        place: where they were read.
        template: what makes text of a record that is a JSON object; None where the record is the text.
    """

    records: list[bytes]
    place: Place
    template: Template | None = None

    @property
    def digest(self) -> str:
        """A hash of the content alone: equal chunks of two files have the same one."""
        state = hashlib.blake2b(repr(self.template).encode(), digest_size=16)
        state.update(np.fromiter(map(len, self.records), np.int64, len(self.records)).tobytes())
        state.update(b"".join(self.records))
        return state.hexdigest()

    def texts(self) -> list[str]:
        """The text of every record; a blank line's is empty.

        Raises:
            DataError: when one is not UTF-8, not a JSON object or lacks a field, naming ``file:line``.
        """
        return [self._text(index, record) for index, record in enumerate(self.records)]

    def _text(self, index: int, record: bytes) -> str:
        where = self.place.of(index)
        try:
            text = record.decode()
        except UnicodeDecodeError as fault:
            path, _, line = where.rpartition(":")
            at = int(line) + record.count(b"\n", 0, fault.start)
            byte = f"byte 0x{record[fault.start]:02x}"
            raise DataError(f"{byte} is not UTF-8", where=f"{path}:{at}", do="Save the file as UTF-8.") from None
        return text if self.template is None else _json_text(text, self.template, where)


def read_chunks(files: Sequence[Path], template: Template) -> Iterator[Chunk]:
    """All documents of some files, in order: a text file is one document, a row of JSONL or Parquet is one.

    A chunk ends after a record that its own bytes choose, so an edit changes the chunks around it and no others.

    Raises:
        DataError: when a file cannot be read.
    """
    for kind, group in itertools.groupby(files, key=kind_of):
        paths = list(group)
        if kind == "text":
            names = tuple(map(str, paths))
            for start, records in _cut(map(_read, paths)):
                yield Chunk(records, Place(names[start : start + len(records)], 1))
        else:
            for path in paths:
                rows, rule = (_lines(path), template) if kind == "jsonl" else (_parquet_rows(path, template), None)
                for start, records in _cut(rows):
                    yield Chunk(records, Place((str(path),), start + 1), rule)


def _cut(records: Iterable[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    """Content-defined chunks and the number of the first record of each; a byte ends one with chance 1 / mean."""
    held: list[bytes] = []
    start = size = 0
    for record in records:
        held.append(record)
        size += len(record)
        if size < _LEAST_BYTES:
            continue
        if size >= _MOST_BYTES or zlib.crc32(record) * _MEAN_BYTES < len(record) << 32:
            yield start, held
            start, size, held = start + len(held), 0, []
    if held:
        yield start, held


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as fault:
        raise _unreadable(path, fault) from fault


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            first = file.readline()
            if not first:
                raise DataError("the file is empty", where=path, do="Remove it, or write a JSON object a line.")
            yield first.removeprefix(_BYTE_ORDER_MARK)
            yield from file
    except OSError as fault:
        raise _unreadable(path, fault) from fault


def _parquet_rows(path: Path, template: Template) -> Iterator[bytes]:
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for name in template.fields:
                if name not in names:
                    raise DataError(f"there is no column '{name}'", where=path, do=did_you_mean(name, names))
            line = 0
            for batch in file.iter_batches(_PARQUET_ROWS, columns=list(template.fields)):
                columns = [_strings(batch.column(name), name, path, line) for name in template.fields]
                for values in zip(*columns, strict=True):
                    line += 1
                    yield template.render(dict(zip(template.fields, values, strict=True)), f"{path}:{line}").encode()
    except DataError:
        raise
    except Exception as fault:  # pyarrow meets a damaged file with almost any exception
        raise DataError(
            f"the file is not sound Parquet ({_first_line(fault)})", where=path, do="Write it anew."
        ) from fault


def _strings(column: Any, name: str, path: Path, rows_before: int) -> list[str | None]:
    """A column's values as text, decoded here so that a fault can be given its row."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise DataError(f"column '{name}' is {column.type}, not a string", where=path, do="Name a column of text.")
    values: list[str | None] = []
    for value in column.cast(pa.large_binary()).to_pylist():
        try:
            values.append(None if value is None else value.decode())
        except UnicodeDecodeError:
            where = f"{path}:{rows_before + len(values) + 1}"
            raise DataError(f"column '{name}' is not UTF-8", where=where, do="Write the column as UTF-8.") from None
    return values


def _json_text(line: str, template: Template, where: str) -> str:
    if not line or line.isspace():
        return ""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as fault:
        raise DataError(
            f"the line is not JSON ({_first_line(fault)})", where=where, do="Remove or repair it."
        ) from None
    if not isinstance(row, dict):
        what = f"the line is a JSON {type(row).__name__}, not an object"
        raise DataError(what, where=where, do='Write one object a line, as {"text": "..."}.')
    text = template.render(row, where)
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as fault:
        what = f"the text has half of a surrogate pair ({text[fault.start]!r}), which is no character"
        raise DataError(what, where=where, do="Remove or repair it.") from None
    return text


def _unreadable(path: Path, fault: OSError) -> DataError:
    return DataError(f"the file cannot be read ({fault.strerror or fault})", where=path, do="Check it and its rights.")


def _first_line(fault: Exception) -> str:
    return (str(fault).strip() or type(fault).__name__).splitlines()[0].rstrip(".")
