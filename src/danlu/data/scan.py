"""Where a file can be cut into chunks, found by reading it once and keeping none of it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from danlu.data.chunks import digest_of, digest_of_files, unreadable
from danlu.data.order import mix
from danlu.errors import DataError

LEAST_BYTES = 1 << 19
MEAN_BYTES = 3 << 19
MOST_BYTES = 1 << 23
_BLOCK = 1 << 21
_SAMPLED = 16
"""Bytes of a line that decide, with its length, whether a chunk ends there."""
_NEWLINE = 10
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Cut(NamedTuple):
    """A chunk's bounds, in bytes, rows or files; its documents and bytes; and a hash of its content, as hex digits."""

    start: int
    stop: int
    num_documents: int
    num_bytes: int
    digest: str


def cut_lines(path: str | Path) -> Iterator[Cut]:
    """Chunks of a file's lines.

    A chunk ends after a line that its own bytes choose, so an edit changes the chunks around it and no others.

    Raises:
        DataError: when the file cannot be read or is empty.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            yield from _cut_lines(file, path)
    except OSError as fault:
        raise unreadable(path, fault) from fault


def _cut_lines(file: io.FileIO, path: str | Path) -> Iterator[Cut]:
    begin = file.read(len(_BYTE_ORDER_MARK))
    start = len(begin) if begin == _BYTE_ORDER_MARK else 0
    file.seek(start)
    held, size, lines, state = bytearray(), 0, 0, _hash()
    while block := file.read(_BLOCK):
        held += block
        if b"\n" not in block:
            continue  # a line longer than a block is held until it ends
        ends = np.flatnonzero(np.frombuffer(held, np.uint8) == _NEWLINE) + 1
        wanted = _wanted(held, ends)
        done = first = 0
        while (last := _end(ends, wanted, done - size)) is not None:
            stop = int(ends[last])
            state.update(memoryview(held)[done:stop])
            size += stop - done
            yield Cut(start, start + size, lines + last + 1 - first, size, state.hexdigest())
            start, size, lines, state, done, first = start + size, 0, 0, _hash(), stop, last + 1
        stop = int(ends[-1])
        state.update(memoryview(held)[done:stop])
        size, lines = size + stop - done, lines + len(ends) - first
        held = held[stop:]
    if not (size or held or start):
        raise DataError("the file is empty", where=path, do="Remove it, or write a JSON object a line.")
    if size or held:
        state.update(held)
        yield Cut(start, start + size + len(held), lines + bool(held), size + len(held), state.hexdigest())


def _hash() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)


def _end(ends: Int64[np.ndarray, " L"], wanted: Bool[np.ndarray, " L"], start: int) -> int | None:
    """The line that a chunk which began at `start` ends after, or None when it has not come yet."""
    least, most = np.searchsorted(ends, [start + LEAST_BYTES, start + MOST_BYTES])
    among = wanted[least : most + 1]
    last = int(least + among.argmax()) if among.any() else int(most)
    return last if last < len(ends) else None


def _wanted(text: bytearray, ends: Int64[np.ndarray, " L"]) -> Bool[np.ndarray, " L"]:
    """Which lines may end a chunk: a byte ends one with chance 1 / mean, by its line's length and some of its bytes."""
    content = np.frombuffer(text, np.uint8)
    starts = np.concatenate([[0], ends[:-1]])
    lengths = ends - starts
    sampled = np.empty((len(ends), _SAMPLED), np.uint8)
    for i in range(_SAMPLED):
        sampled[:, i] = content[starts + lengths * i // _SAMPLED]
    halves = sampled.view("<u8")
    drawn = mix(mix(halves[:, 0] ^ lengths.astype(np.uint64)) ^ halves[:, 1])
    return drawn / 2.0**64 * MEAN_BYTES < lengths


def cut_files(paths: Sequence[str | Path]) -> Iterator[Cut]:
    """Chunks of whole files, each one document; where a chunk ends is the choice of a file's own bytes.

    Raises:
        DataError: when a file cannot be read.
    """
    start, size, digests = 0, 0, list[bytes]()
    for number, path in enumerate(paths, 1):
        digest, length = _digest_of_file(path)
        digests.append(digest)
        size += length
        chance = int.from_bytes(digest[:4], "little") * MEAN_BYTES < length << 32
        if size >= MOST_BYTES or (size >= LEAST_BYTES and chance):
            yield Cut(start, number, number - start, size, digest_of_files(digests).hex())
            start, size, digests = number, 0, []
    if digests:
        yield Cut(start, len(paths), len(digests), size, digest_of_files(digests).hex())


def cut_rows(path: str | Path, groups: Iterable[tuple[int, int]]) -> Iterator[Cut]:
    """Chunks of a columnar file's rows: small groups of rows together, large ones in pieces.

    Args:
        path: the file.
        groups: the rows and bytes of each group, in order.

    Raises:
        DataError: when the file cannot be read.
    """
    whole, _ = _digest_of_file(path)
    start = stop = held = 0
    for rows, size in groups:
        pieces = max(1, -(-size // MOST_BYTES))
        for piece in range(pieces):
            stop += rows * (piece + 1) // pieces - rows * piece // pieces
            held += size // pieces
            if held >= LEAST_BYTES and stop > start:
                yield _rows(whole, start, stop, held)
                start, held = stop, 0
    if stop > start:
        yield _rows(whole, start, stop, held)


def _rows(whole: bytes, start: int, stop: int, size: int) -> Cut:
    return Cut(start, stop, stop - start, size, digest_of(repr((whole, start, stop)).encode()).hex())


def _digest_of_file(path: str | Path) -> tuple[bytes, int]:
    """The hash of a file, which `digest_of` gives for its content, and its size."""
    state, size = _hash(), 0
    try:
        with open(path, "rb", buffering=0) as file:
            while block := file.read(_BLOCK):
                state.update(block)
                size += len(block)
    except OSError as fault:
        raise unreadable(path, fault) from fault
    return state.digest(), size
