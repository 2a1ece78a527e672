"""Files that cannot be cut by offset, unpacked once into lines of JSON in the cache.

Compressed files, JSON arrays (or one object over several lines) and CSV are read from their beginning to their end,
however large, a block at a time. What is written has a row a line, byte for byte as it was found where that can be, and
beside it each row's line in the file it came from.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from danlu.data import store
from danlu.data.chunks import first_line, unreadable
from danlu.data.files import Form
from danlu.data.values import json_values
from danlu.errors import DataError

_BLOCK = 1 << 20
_PACKED_BLOCK = 1 << 16  # so that even what packs a thousand times stays small
_LARGEST_CELL = 1 << 28
_ROWS_HELD = 1 << 12
_BYTE_ORDER_MARK = codecs.BOM_UTF8


@dataclass(frozen=True)
class Spooled:
    """What was unpacked of a file.

    Attributes:
        content: its text, or a row a line.
        lines: each row's line in the file, as one integer of eight bytes; None where it is the row's number.
    """

    content: Path
    lines: Path | None


def spool(path: Path, form: Form, to: Path) -> Spooled:
    """Unpack a file.

    Args:
        path: the file.
        form: its form.
        to: where its content goes; a name that is this file's alone, to be overwritten when the file changes.

    Raises:
        DataError: when it is not sound, by file and line where that is known, or the cache cannot be written.
    """
    if form.format in ("parquet", "arrow"):
        raise DataError(f"a packed {form.format} file is not read", where=path, do="Unpack it; it is packed inside.")
    blocks = _blocks(path, form)
    if form.format in ("csv", "tsv"):
        return _write_rows(_table_rows(blocks, "\t" if form.format == "tsv" else ",", path), to, path)
    head = next(blocks, b"")
    if form.format == "json" and not is_lines(head):
        return _write_rows(json_values(_chain(head, blocks), path), to, path)
    with store.writing(to) as file:
        for block in _chain(head, blocks):
            file.write(block)
    return Spooled(to, None)


def is_lines(head: bytes) -> bool:
    r"""Whether JSON, of which this is the beginning, goes line by line: it is no array, and a line ends its object.

    Example:
        >>> is_lines(b'{"a": 1}\n{"a": 2}'), is_lines(b'[{"a": 1}]'), is_lines(b'{\n"a": 1}')
        (True, False, False)
    """
    line, ended, _ = head.removeprefix(_BYTE_ORDER_MARK).lstrip().partition(b"\n")
    return not line.startswith(b"[") and (not ended or not line.startswith(b"{") or line.rstrip().endswith(b"}"))


def _chain(head: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from blocks


def _write_rows(rows: Iterator[tuple[int, str]], to: Path, path: Path) -> Spooled:
    """Put rows a line, and beside them where they were."""
    beside, count = to.with_name(f"{to.name}.lines"), 0
    numbers: list[int] = []

    def keep(file: BinaryIO) -> None:
        file.write(np.array(numbers, "<i8").tobytes())
        numbers.clear()

    with store.writing(beside) as lines, store.writing(to) as content:
        for number, row in rows:
            content.write(row.encode("utf-8", "surrogateescape") + b"\n")
            numbers.append(number)
            count += 1
            if len(numbers) == _ROWS_HELD:
                keep(lines)
        keep(lines)
        if not count:
            raise DataError("the file has no rows", where=path, do="Remove it, or write rows into it.")
    return Spooled(to, beside)


def _blocks(path: Path, form: Form) -> Iterator[bytes]:
    """A file's content, unpacked, a block at a time."""
    unpack = {"gzip": _gunzip, "zstd": _unzstd, None: _plain}[form.compression]
    try:
        with path.open("rb") as file:
            yield from unpack(file)
    except ImportError:
        what = "a .zst file needs the `zstandard` package"
        raise DataError(what, where=path, do="pip install zstandard, or unpack the file.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error, _ZstdError) as fault:
        what = f"the file is not sound {form.compression} ({first_line(fault)})"
        raise DataError(what, where=path, do="Get it anew.") from None
    except OSError as fault:
        raise unreadable(path, fault) from fault


def _plain(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(_BLOCK):
        yield block


def _gunzip(file: BinaryIO) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=file) as unpacked:
        while block := unpacked.read(_BLOCK):
            yield block


class _ZstdError(Exception):
    """What is not sound in a zstd file; the package's own exception is known only where the package is."""


def _unzstd(file: BinaryIO) -> Iterator[bytes]:
    import zstandard

    frame = None
    try:
        while block := file.read(_PACKED_BLOCK):
            while block:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                if content := frame.decompress(block):
                    yield content
                block, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    except zstandard.ZstdError as fault:
        raise _ZstdError(str(fault)) from None
    if frame is not None:
        raise EOFError("it ends before its end")


def _table_rows(blocks: Iterator[bytes], delimiter: str, path: Path) -> Iterator[tuple[int, str]]:
    """The rows of a CSV file as JSON objects, each with its first line; one of another width is left a list."""
    csv.field_size_limit(_LARGEST_CELL)
    reader = csv.reader(_text_lines(blocks), delimiter=delimiter, strict=True)
    line = 0
    try:
        header = next(reader, [])
        if not any(header) or len(set(header)) < len(header):
            what = "the header names a column twice" if any(header) else "there is no header"
            raise DataError(what, where=f"{path}:1", do="Give every column a name of its own in the first line.")
        line = reader.line_num
        for row in reader:
            if row:
                named = dict(zip(header, row, strict=True)) if len(row) == len(header) else row
                yield line + 1, json.dumps(named, ensure_ascii=False)
            line = reader.line_num
    except csv.Error as fault:
        what = f"the row is not sound CSV ({first_line(fault)})"
        raise DataError(what, where=f"{path}:{line + 1}", do="Repair its quotes.") from None


def _text_lines(blocks: Iterator[bytes]) -> Iterator[str]:
    """Lines of text; what is not UTF-8 goes through unharmed, to be told of its row."""
    held = bytearray()
    first = True
    for block in blocks:
        held += block
        if b"\n" not in block:
            continue
        *lines, rest = held.split(b"\n")
        held = rest
        for line in lines:
            yield _decode(line.removeprefix(_BYTE_ORDER_MARK) if first else line) + "\n"
            first = False
    if held:
        yield _decode(held.removeprefix(_BYTE_ORDER_MARK) if first else held)


def _decode(line: bytes | bytearray) -> str:
    return line.decode("utf-8", "surrogateescape")
