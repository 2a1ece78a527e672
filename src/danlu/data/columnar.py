"""Rows of Parquet and Arrow files."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from danlu.data.chunks import Chunk, first_line
from danlu.data.scan import Cut, cut_rows
from danlu.errors import DataError

if TYPE_CHECKING:
    from pyarrow import RecordBatch

_BATCH = 1024
_ARROW_FILE = b"ARROW1"
_NAMES = {"parquet": "Parquet", "arrow": "Arrow"}


def cut_columnar(path: str | Path, kind: str) -> list[Cut]:
    """Chunks of a file's rows, found without decoding any.

    Raises:
        DataError: when it is not sound.
    """
    try:
        return list(cut_rows(path, _groups(path, kind)))
    except DataError:
        raise
    except Exception as fault:  # pyarrow meets a damaged file with almost any exception
        raise _unsound(path, kind, fault) from fault


def rows(chunk: Chunk, wanted: Collection[str] | None) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    """A chunk's rows in order; in place of one whose text is not UTF-8, that fault.

    Args:
        chunk: of a columnar file.
        wanted: the columns that are needed; all when one of them is not there, or with None.

    Raises:
        DataError: when the file is not sound.
        FileChangedError: when it is not the one that was indexed.
    """
    chunk.check()
    try:
        for batch in _batches(chunk, wanted):
            yield from _rows(batch)
    except DataError:
        raise
    except Exception as fault:
        raise _unsound(chunk.place.paths[0], chunk.kind, fault) from fault


def _unsound(path: str | Path, kind: str, fault: Exception) -> DataError:
    what = f"the file is not sound {_NAMES[kind]} ({first_line(fault)})"
    return DataError(what, where=path, do="Write it anew.")


def _groups(path: str | Path, kind: str) -> Iterator[tuple[int, int]]:
    """The rows and bytes of each row group or record batch."""
    if kind == "arrow":
        for batch in _arrow_batches(path):
            yield batch.num_rows, batch.nbytes
        return
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        for number in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(number)
            yield group.num_rows, group.total_byte_size


def _batches(chunk: Chunk, wanted: Collection[str] | None) -> Iterator[RecordBatch]:
    """The rows of a chunk, some at a time, and no others."""
    path = chunk.files[0]
    first, batches = (0, _arrow_batches(path)) if chunk.kind == "arrow" else _parquet_batches(chunk, wanted)
    for batch in batches:
        begin, end = max(chunk.start - first, 0), min(chunk.stop - first, batch.num_rows)
        first += batch.num_rows
        for at in range(begin, end, _BATCH):
            yield batch.slice(at, min(_BATCH, end - at))
        if first >= chunk.stop:
            return


def _parquet_batches(chunk: Chunk, wanted: Collection[str] | None) -> tuple[int, Iterator[RecordBatch]]:
    """The row groups that a chunk is in, and the number of their first row."""
    from pyarrow import parquet

    def batches() -> Iterator[RecordBatch]:
        with parquet.ParquetFile(chunk.files[0]) as file:
            known = wanted is not None and set(wanted) <= set(file.schema_arrow.names)
            yield from file.iter_batches(_BATCH, row_groups=groups, columns=list(wanted or ()) if known else None)

    metadata = parquet.read_metadata(chunk.files[0])
    groups: list[int] = []
    begin = before = 0
    for number in range(metadata.num_row_groups):
        after = before + metadata.row_group(number).num_rows
        if after > chunk.start and before < chunk.stop:
            begin = begin if groups else before
            groups.append(number)
        before = after
    return begin, batches()


def _arrow_batches(path: str | Path) -> Iterator[RecordBatch]:
    """All batches, of the file or the stream format, mapped rather than read."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        seekable = file.read(len(_ARROW_FILE)) == _ARROW_FILE
        file.seek(0)
        reader = pa.ipc.open_file(file) if seekable else pa.ipc.open_stream(file)
        if not seekable:
            yield from reader
            return
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def _rows(batch: RecordBatch) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError as fault:
        if batch.num_rows == 1:
            yield fault
            return
        for number in range(batch.num_rows):
            yield from _rows(batch.slice(number, 1))
