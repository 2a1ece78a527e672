"""The index of some files: their chunks, found without parsing anything.

An index that took a while to make is kept in the cache beside each file's size and time, and holds as long as they do.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from danlu.data import store
from danlu.data.chunks import Chunk, Kind, Place, Stamp, stamp_of
from danlu.data.columnar import cut_columnar
from danlu.data.files import Form, form_of
from danlu.data.scan import Cut, cut_files, cut_lines
from danlu.data.spool import is_lines, spool

KEPT_BYTES = 1 << 23
"""Bytes of files below which an index is made as quickly as it is found."""
_SETTLED = 2 * 10**9
"""Nanoseconds without a change after which a file's time tells whether it is changed again."""
_VERSION = 1
_HEAD = 1 << 20


@dataclass(frozen=True)
class _Listing:
    """What the index says of files that are read together: all text files that follow each other, or one other file.

    Attributes:
        kind: how they are read.
        cuts: their chunks.
        content: what was spooled of a file.
        lines: where that keeps the lines.
    """

    kind: Kind
    cuts: list[Cut]
    content: str | None = None
    lines: str | None = None
    stamps: list[Stamp] = field(default_factory=list)

    def chunks(self, paths: Sequence[str]) -> Iterator[Chunk]:
        """As chunks, by the names that a person gave."""
        read = tuple(paths) if self.content is None else (self.content,)
        before = 0
        for start, stop, count, size, digest in self.cuts:
            if self.kind == "text":
                place = Place(tuple(paths[start:stop]))
                yield Chunk("text", place, read[start:stop], 0, 0, count, size, digest)
            else:
                place = Place(tuple(paths), before + 1, self.lines)
                stamp = self.stamps[0] if self.kind in ("parquet", "arrow") else None
                yield Chunk(self.kind, place, read, start, stop, count, size, digest, stamp)
            before += count


def index(files: Sequence[Path], folder: Path) -> list[Chunk]:
    """The chunks of some files, in order: a text file is one document, a row of any other is one.

    Args:
        files: as `danlu.data.files.resolve` gives them.
        folder: the cache's.

    Raises:
        DataError: when a file cannot be read, or the cache not be written.
    """
    chunks: list[Chunk] = []
    for form, group in itertools.groupby(files, key=form_of):
        paths = [str(path) for path in group]
        for together in [paths] if form == Form("text") else [[path] for path in paths]:
            chunks += _listing(together, form, folder).chunks(together)
    return chunks


def forget(chunk: Chunk, folder: Path) -> None:
    """Drop what is kept of a chunk's file, which is no longer what it was."""
    path = chunk.place.paths[0]
    with suppress(OSError):
        _entry([path], form_of(Path(path)), folder).unlink()


def _entry(paths: Sequence[str], form: Form, folder: Path) -> Path:
    parts = (_VERSION, form, [os.path.abspath(path) for path in paths])
    return store.entry(folder, hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest())


def _listing(paths: Sequence[str], form: Form, folder: Path) -> _Listing:
    stamps = [stamp_of(path) for path in paths]
    plain = form.compression is None and form.format not in ("json", "csv", "tsv")
    if plain and sum(size for size, _ in stamps) < KEPT_BYTES:
        return _scan(paths, form, folder, stamps)
    entry = _entry(paths, form, folder)
    found = _load(entry, stamps)
    if found is not None:
        return found
    with store.locked(entry):
        settled = time.time_ns() - max(changed for _, changed in stamps) > _SETTLED
        found = _load(entry, stamps) or _scan(paths, form, folder, stamps)
        if settled:
            store.write(entry, [json.dumps(asdict(found)).encode()])
    return found


def _scan(paths: Sequence[str], form: Form, folder: Path, stamps: list[Stamp]) -> _Listing:
    path = Path(paths[0])
    if form.format in ("parquet", "arrow") and form.compression is None:
        kind: Kind = "parquet" if form.format == "parquet" else "arrow"
        return _Listing(kind, cut_columnar(path, kind), stamps=stamps)
    if form == Form("text"):
        return _Listing("text", list(cut_files(paths)), stamps=stamps)
    if form == Form("lines") or (form == Form("json") and is_lines(_head(path))):
        return _Listing("lines", list(cut_lines(path)), stamps=stamps)
    to = _entry(paths, form, folder)
    spooled = spool(path, form, to.with_name(f"{to.name}.spool"))
    kind = "text" if form.format == "text" else "table" if form.format in ("csv", "tsv") else "lines"
    cuts = cut_files([spooled.content]) if kind == "text" else cut_lines(spooled.content)
    lines = None if spooled.lines is None else str(spooled.lines)
    return _Listing(kind, list(cuts), str(spooled.content), lines, stamps)


def _load(entry: Path, stamps: list[Stamp]) -> _Listing | None:
    """What is kept, if the files are still the same and what was spooled of one is still there."""
    content = store.read(entry)
    if content is None:
        return None
    kept: dict[str, Any] = json.loads(bytes(content))
    kept["cuts"] = [Cut(*cut) for cut in kept["cuts"]]
    kept["stamps"] = [(size, changed) for size, changed in kept["stamps"]]
    found = _Listing(**kept)
    spooled = [name for name in (found.content, found.lines) if name is not None]
    return found if found.stamps == stamps and all(map(os.path.exists, spooled)) else None


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)
