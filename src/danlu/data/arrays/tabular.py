"""Tables of CSV, TSV and Parquet files as rows of numbers."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from danlu.data.arrays.checks import Place, classes_of, labels_of, look, refuse_unknown
from danlu.data.arrays.config import ArrayConfig
from danlu.data.arrays.rows import Arrays, Seen
from danlu.data.chunks import first_line
from danlu.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = frozenset({".csv", ".tsv", ".parquet"})
"""What files with tables end in."""
_INDEX = "__index_level_"
"""What pandas calls a column of row numbers."""
_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "#n/a", "#na", "-nan", "<na>"})


def read_table(path: Path, config: ArrayConfig) -> Arrays:
    """The rows of a table.

    Args:
        path: of a file that ends in one of `SUFFIXES`.
        config: which columns, and what they are.

    Raises:
        DataError: when the file is not sound, or its numbers are not what a density can be of.
        RecipeError: when a column that is named is not there.
    """
    table, place = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    if not table.num_rows:
        raise DataError("the file has no rows", where=path, do="Name a file that has some.")
    names = [str(name) for name in table.column_names]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise DataError(f"two columns are called '{twice}'", where=path, do="Name them apart.")
    labels = labels_of(config)
    for field, wanted in (("columns", config.columns or ()), ("label", labels)):
        refuse_unknown(wanted, names, field)
    taken = config.columns or [name for name in names if name not in labels and not name.startswith(_INDEX)]
    if not taken:
        raise DataError("no column is left beside the label", where=path, do="Set data.columns.")
    x = np.empty((table.num_rows, len(taken)), np.float32)
    seen = []
    for j, name in enumerate(taken):
        column = _numbers(table.column(name), name, place)
        seen.append(look(column[:, None], lambda _, name=name: f"column '{name}'", place))  # type: ignore[misc]
        x[:, j] = column
    facts = Seen(*(np.concatenate([getattr(one, field) for one in seen]) for field in ("low", "high", "whole")))
    condition, classes = _condition(table, config.label, place, str(path))
    features = () if classes else tuple(labels)
    label = labels[0] if classes else ""
    return Arrays(x, condition, "table", str(path), tuple(taken), classes, features, seen=facts, label=label)


def _condition(
    table: pa.Table, label: str | list[str] | None, place: Place, where: str
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """What rows are conditioned on, and the names of the classes where it is one."""
    import pyarrow as pa

    if not label:
        return None, ()
    if isinstance(label, str):
        column = _plain(table.column(label))
        kind = column.type
        if pa.types.is_string(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
            _refuse_missing(column, label, place)
            coded = column.combine_chunks().dictionary_encode()
            found = coded.dictionary.to_pylist()
            number = coded.indices.to_numpy().astype(np.int64)
            if "" in found:
                raise _missing(label, place(int(np.flatnonzero(number == found.index(""))[0])))
            return classes_of(found, number, f"column '{label}'", where)
    names = [label] if isinstance(label, str) else label
    told = np.stack([_numbers(table.column(name), name, place) for name in names], 1)
    look(told, lambda j: f"column '{names[j]}'", place)
    return told.astype(np.float32), ()


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The same without a dictionary, and with one kind of text."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    wide = pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type)
    return column.cast(pa.string()) if wide else column


def _numbers(column: pa.ChunkedArray, name: str, place: Place) -> np.ndarray:
    """A column of numbers in float64."""
    import pyarrow as pa

    column, types = _plain(column), pa.types
    kind = column.type
    if types.is_string(kind):
        return _parsed(column.to_pylist(), name, place)
    number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)
    if not number and not types.is_null(kind):
        what = f"column '{name}' is of type {kind}, not numbers"
        raise DataError(what, where=place(0), do="Name the columns to take in data.columns.")
    _refuse_missing(column, name, place)
    if types.is_decimal(kind):
        column = column.cast(pa.float64())
    return column.to_numpy().astype(np.float64)


def _refuse_missing(column: pa.ChunkedArray, name: str, place: Place) -> None:
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise _missing(name, place(row), " in any row" if column.null_count == len(column) else "")


def _missing(name: str, where: str, when: str = "") -> DataError:
    return DataError(f"column '{name}' has no value{when}", where=where, do="Fill it in, or remove the row.")


def _parsed(values: list[str | None], name: str, place: Place) -> np.ndarray:
    """A column of texts as the numbers they spell; if not, the odd one out is the fault where most do."""
    strange = [row for row, value in enumerate(values) if not _is_number(value)]
    if not strange:
        absent = next((row for row, value in enumerate(values) if (value or "").strip().lower() in _MISSING), None)
        if absent is not None:
            raise _missing(name, place(absent))
        return np.array(values, np.float64)
    told = values[strange[0]]
    if 2 * len(strange) < len(values):
        what = f"column '{name}' has '{told}', which is no number"
        raise DataError(what, where=place(strange[0]), do="Remove or repair the row.")
    do = f"Condition rows on it by data.label={name}, or name the columns to take in data.columns."
    raise DataError(f"column '{name}' is text ('{told}')", where=place(strange[0]), do=do)


def _is_number(value: str | None) -> bool:
    try:
        float(value or "")
    except ValueError:
        return value is not None and value.strip().lower() in _MISSING
    return True


def _parquet(path: Path) -> tuple[pa.Table, Place]:
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            table = file.read()
            table.validate(full=True)
    except Exception as fault:  # pyarrow meets a damaged file with almost any exception
        raise _unsound(path, "Parquet", fault) from fault
    return table, lambda row: f"{path} row {row}"


def _csv(path: Path) -> tuple[pa.Table, Place]:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    names = _first_cells(path, delimiter)
    if len(names) == 1 and ";" in names[0] and delimiter == ",":
        raise DataError("columns stand between semicolons", where=path, do="Save it with commas between them.")
    headed = not all(_is_number(name) for name in names)

    def read(kinds: dict[str, Any], *, threads: bool) -> pa.Table:
        parsing = arrow_csv.ParseOptions(delimiter=delimiter)
        reading = arrow_csv.ReadOptions(autogenerate_column_names=not headed, use_threads=threads)
        return arrow_csv.read_csv(path, reading, parsing, arrow_csv.ConvertOptions(column_types=kinds))

    try:
        try:
            table = read({}, threads=True)
        except pa.ArrowInvalid:  # a column that begins with numbers and goes on with texts, maybe
            known = names if headed else [f"f{j}" for j in range(len(names))]
            table = read(dict.fromkeys(known, pa.string()), threads=False)  # which counts rows
        table.validate(full=True)
    except Exception as fault:  # as above
        raise _odd_row(path, fault) or _unsound(path, "CSV", fault) from fault
    return table, lambda row: f"{path}:{_line_of(path, row + headed)}"


def _odd_row(path: Path, fault: Exception) -> DataError | None:
    """The fault of a row with too few or too many values, which pyarrow numbers from 1 with the names counted."""
    found = re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", str(fault))
    if found is None:
        return None
    row, expected, actual = map(int, found.groups())
    what = f"the row has {actual} values where the first has {expected}"
    return DataError(what, where=f"{path}:{_line_of(path, row - 1)}", do="Repair or remove it.")


def _first_cells(path: Path, delimiter: str) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            line = next((line for line in file if line.strip("\r\n")), "")
        return next(csv.reader([line], delimiter=delimiter), [])
    except (UnicodeDecodeError, csv.Error) as fault:
        raise _unsound(path, "CSV", fault) from fault


def _line_of(path: Path, row: int) -> int:
    """The line that a row is in, the first being 1; empty lines are no rows."""
    with path.open("rb") as file:
        numbers = (number for number, line in enumerate(file, 1) if line.strip(b"\r\n"))
        return next((number for i, number in enumerate(numbers) if i == row), row + 1)


def _unsound(path: Path, kind: str, fault: Exception) -> DataError:
    return DataError(f"the file is not sound {kind} ({first_line(fault)})", where=path, do="Write it anew.")
