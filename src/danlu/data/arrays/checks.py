"""What rows must be before a density of them makes sense; a sentence where they are not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from danlu.data.arrays.config import ArrayConfig
from danlu.data.arrays.rows import Arrays
from danlu.errors import DataError, RecipeError, did_you_mean

MOST_CLASSES = 1000
"""As many classes rows may be conditioned on."""
_LARGEST = float(np.finfo(np.float32).max)
_BLOCK = 1 << 22
"""Numbers that are looked at at once."""

Place = Callable[[int], str]
"""Where a row is, as a person finds it, from its number."""
Name = Callable[[int], str]
"""What a column is called in a sentence, as "column 'a'", from its number."""


@dataclass(frozen=True)
class Seen:
    """What columns hold.

    Attributes:
        low: the least number of each, ``[D]``.
        high: the greatest.
        whole: whether all are whole numbers.
    """

    low: Float64[np.ndarray, " D"]
    high: Float64[np.ndarray, " D"]
    whole: Bool[np.ndarray, " D"]


def blocks(x: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Rows a few at a time, each time with the number of the first."""
    step = max(1, _BLOCK // max(1, math.prod(x.shape[1:])))
    for start in range(0, len(x), step):
        yield start, x[start : start + step]


def look(x: np.ndarray, name: Name, place: Place) -> Seen:
    """What the columns of ``[N, ...]`` hold, an image's numbers being columns one after another.

    Args:
        x: at least one row.
        name: what a column is called in a sentence.
        place: where a row is.

    Raises:
        DataError: when a number is not finite, or too large for float32.
    """
    size = math.prod(x.shape[1:])
    low, high, whole = np.full(size, np.inf), np.full(size, -np.inf), np.ones(size, bool)
    for start, block in blocks(x):
        rows = block.reshape(len(block), size)
        least, most = rows.min(0), rows.max(0)
        sound = (least >= -_LARGEST) & (most <= _LARGEST)  # a NaN makes both comparisons false
        if not sound.all():
            raise _unsound(rows, start, name, place)
        low, high = np.minimum(low, least), np.maximum(high, most)
        if rows.dtype.kind == "f":
            for j in np.flatnonzero(whole):
                whole[j] = bool((rows[:, j] == np.floor(rows[:, j])).all())
    return Seen(low, high, whole)


def _unsound(rows: np.ndarray, start: int, name: Name, place: Place) -> DataError:
    bad = ~(np.isfinite(rows) & (np.abs(rows) <= _LARGEST))
    row, column = (int(where[0]) for where in np.nonzero(bad))
    value = float(rows[row, column])
    what = f"{name(column)} has {value:g}, which is " + ("too large" if np.isfinite(value) else "no number")
    return DataError(what, where=place(start + row), do="Remove or repair the row.")


def refuse_constant(seen: Seen, name: Name, where: str) -> None:
    """Refuse columns that never change.

    Raises:
        DataError: naming the first.
    """
    for j in np.flatnonzero(seen.low == seen.high):
        what = f"{name(int(j))} is {seen.low[j]:g} in every row, and has no density"
        raise DataError(what, where=where, do="Leave it out by data.columns.")


def whole_columns(seen: Seen, columns: Sequence[str], config: ArrayConfig, where: str) -> tuple[bool, ...]:
    """Which columns are to be dequantised.

    Raises:
        DataError: when a column is of whole numbers and nothing is said of these, or it has more levels than is said.
    """
    levels = levels_of(config)
    for j in np.flatnonzero(seen.whole):
        low, high = int(seen.low[j]), int(seen.high[j])
        if config.dequantize == "auto":
            what = f"column '{columns[j]}' holds whole numbers from {low} to {high}, whose density has no bound"
            do = (
                "Set data.dequantize to true to add noise as wide as a step, or to false to take them as real numbers; "
                f"or condition rows on them: data.label={columns[j]}."
            )
            raise DataError(what, where=where, do=do)
        if levels is not None:
            refuse_levels(low, high, levels, f"column '{columns[j]}'", where)
    return tuple(bool(w) and config.dequantize is not False for w in seen.whole)


def refuse_levels(low: int, high: int, levels: int, name: str, where: str) -> None:
    """Refuse numbers beyond the levels there are.

    Raises:
        DataError: naming the number.
    """
    if low < 0 or high >= levels:
        what = f"{name} has {low if low < 0 else high}, and {levels} levels are 0 to {levels - 1}"
        raise DataError(what, where=where, do="Set data.dequantize to as many levels as there are, or to true.")


def refuse_unknown(wanted: Sequence[str], names: Sequence[str], field: str) -> None:
    """Refuse columns that are not there.

    Raises:
        RecipeError: suggesting another.
    """
    for name in wanted:
        if name not in names:
            raise RecipeError(f"no column is called '{name}'", where=f"data.{field}", do=did_you_mean(name, names))


def labels_of(config: ArrayConfig) -> list[str]:
    """The names of all that rows are conditioned on."""
    return [config.label] if isinstance(config.label, str) else list(config.label or ())


def levels_of(config: ArrayConfig) -> int | None:
    """How many levels a recipe says there are; None where it does not say."""
    said = config.dequantize
    return said if isinstance(said, int) and not isinstance(said, bool) else None


def classes_of(
    found: Sequence[str | int], number: Int64[np.ndarray, " N"], name: str, where: str
) -> tuple[Int64[np.ndarray, " N"], tuple[str, ...]]:
    """Texts or whole numbers as classes, numbered in order, and the name of each.

    Args:
        found: the different ones.
        number: which of these each row has.
        name: what they are called in a sentence, as "column 'a'".
        where: the file.

    Raises:
        DataError: when there is one class only, or far too many.
    """
    if len(found) < 2:
        raise DataError(f"{name} is the same in every row", where=where, do="Leave data.label out.")
    if len(found) > MOST_CLASSES:
        what = f"{name} has {len(found)} different values, too many to be classes"
        do = "Leave data.label out, or, to condition on it as a number, put it in brackets: data.label=[...]."
        raise DataError(what, where=where, do=do)
    order = sorted(range(len(found)), key=lambda i: found[i])
    rank = np.empty(len(found), np.int64)
    rank[order] = np.arange(len(found))
    return rank[number], tuple(str(found[i]) for i in order)


def refuse_logit(config: ArrayConfig, arrays: Arrays) -> None:
    """Refuse a logit transform of values without bounds.

    Raises:
        RecipeError: saying what it is for.
    """
    if config.logit is not None and arrays.levels is None:
        what = f"a logit transform is for values between known levels, and those of {arrays.origin} have none"
        do = "Leave it out, or set data.dequantize to how many levels there are."
        raise RecipeError(what, where="data.logit", do=do)
