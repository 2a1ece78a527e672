"""What rows must be before a density of them makes sense; a sentence where they are not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Int64

from danlu.data.arrays.config import ArrayConfig
from danlu.data.arrays.rows import Arrays, Seen
from danlu.errors import DataError, RecipeError, did_you_mean

MOST_CLASSES = 1000
"""As many classes rows may be conditioned on."""
_LARGEST = float(np.finfo(np.float32).max)
_FINEST = 1 << 10
"""Steps of float32 that a column must have from end to end, or its values can hardly be told apart."""
_BLOCK = 1 << 22
"""Numbers that are looked at at once."""

Place = Callable[[int], str]
"""Where a row is, as a person finds it, from its number."""
Name = Callable[[int], str]
"""What a column is called in a sentence, as "column 'a'", from its number."""


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
        if rows.dtype.kind == "f" and whole.any():
            whole &= (rows == np.floor(rows)).all(0)
    return Seen(low, high, whole)


def _unsound(rows: np.ndarray, start: int, name: Name, place: Place) -> DataError:
    bad = ~(np.isfinite(rows) & (np.abs(rows) <= _LARGEST))
    row, column = (int(where[0]) for where in np.nonzero(bad))
    value = float(rows[row, column])
    what = f"{name(column)} has {value:g}, which is " + ("too large" if np.isfinite(value) else "no number")
    return DataError(what, where=place(start + row), do="Remove or repair the row.")


def settle(arrays: Arrays, config: ArrayConfig) -> Arrays:
    """Rows to train on, with which of their columns are to be dequantised.

    Args:
        arrays: as they were read; what their columns hold is known.
        config: what a recipe says of whole numbers.

    Raises:
        DataError: when a column, or what rows are conditioned on, never changes; or whole numbers are to have a density
            and the recipe does not say how.
        RecipeError: when a logit transform is asked for where values have no bounds.
    """
    _refuse_constant_labels(arrays)
    if arrays.seen is not None and arrays.kind == "image":
        whole = bool(arrays.seen.whole.all()) and config.dequantize is not False
        levels = _image_levels(arrays, arrays.seen, config)
        arrays = replace(arrays, levels=levels, whole=(whole,) * arrays.shape[0])
    elif arrays.seen is not None:
        whole_columns = _whole_columns(arrays, arrays.seen, config)
        levels = levels_of(config) if all(whole_columns) else None
        arrays = replace(arrays, whole=whole_columns, levels=levels)
    if config.logit is not None and arrays.levels is None:
        what = f"a logit transform is for values between known levels, and those of {arrays.origin} have none"
        do = "Leave it out, or set data.dequantize to how many levels there are."
        raise RecipeError(what, where="data.logit", do=do)
    return arrays


def settle_like(held: Arrays, trained: Arrays) -> Arrays:
    """Rows to measure on, as what is trained on has been settled.

    Raises:
        DataError: when they are not of the same kind, or have classes or levels that are not known there.
    """
    if held.seen is not None and trained.levels is not None:
        low, high = float(held.seen.low.min()), float(held.seen.high.max())
        _refuse_levels(low, high, trained.levels, "a row", held.origin)
    like = held.like(trained)
    if held.seen is not None and any(trained.whole):
        columns = trained.columns or ("",) * len(held.seen.whole)
        noisy = trained.whole if trained.columns else (True,) * len(held.seen.whole)
        odd = next((j for j, whole in enumerate(held.seen.whole) if noisy[j] and not whole), None)
        if odd is not None:
            which = f"column '{columns[odd]}' holds" if columns[odd] else "images hold"
            what = f"{which} whole numbers where it is trained, and others here"
            raise DataError(what, where=held.origin, do="Give both in the same units.")
    return like


def _refuse_constant_labels(arrays: Arrays) -> None:
    what = ""
    if len(arrays.classes) == 1:
        what = f"all rows are of one class, '{arrays.classes[0]}'"
    elif arrays.features and arrays.condition is not None:
        told = arrays.condition
        constant = next((j for j in range(told.shape[1]) if told[:, j].min() == told[:, j].max()), None)
        if constant is not None:
            what = f"column '{arrays.features[constant]}' is {told[0, constant]:g} in every row"
    if what:
        raise DataError(f"{what}, which rows are to be conditioned on", where=arrays.origin, do="Leave it out.")


def _whole_columns(arrays: Arrays, seen: Seen, config: ArrayConfig) -> tuple[bool, ...]:
    """Which columns of a table are to be dequantised."""
    levels = levels_of(config)
    for name, low, high, whole in zip(arrays.columns, seen.low, seen.high, seen.whole, strict=True):
        if low == high:
            what = f"column '{name}' is {low:g} in every row, and has no density"
            raise DataError(what, where=arrays.origin, do="Leave it out by data.columns.")
        _refuse_too_fine(name, low, high, arrays.origin)
        if whole and config.dequantize == "auto":
            what = f"column '{name}' holds whole numbers from {low:g} to {high:g}, whose density has no bound"
            do = (
                "Set data.dequantize to true to add noise of width 1, or to false to take them as real numbers; "
                f"or condition rows on them: data.label={name}."
            )
            raise DataError(what, where=arrays.origin, do=do)
        if whole and levels is not None:
            _refuse_levels(low, high, levels, f"column '{name}'", arrays.origin)
    return tuple(bool(whole) and config.dequantize is not False for whole in seen.whole)


def _refuse_too_fine(name: str, low: float, high: float, where: str) -> None:
    """Refuse a column far from 0 whose values differ by less than float32 can tell."""
    step = float(np.spacing(np.float32(max(abs(low), abs(high)))))
    if high - low < _FINEST * step:
        what = f"column '{name}' lies between {low:.10g} and {high:.10g}, where float32 has steps of {step:.3g}"
        raise DataError(what, where=where, do="Subtract an offset from it, as its mean, and save it anew.")


def _image_levels(arrays: Arrays, seen: Seen, config: ArrayConfig) -> int | None:
    """How many levels the values of images have; None where they are real numbers, or it is not known."""
    low, high = float(seen.low.min()), float(seen.high.max())
    if low == high:
        raise DataError(f"all values of all images are {low:g}", where=arrays.origin, do="Name other images.")
    if config.dequantize is False or not seen.whole.all():
        return None
    levels = levels_of(config)
    if levels is not None:
        _refuse_levels(low, high, levels, "an image", arrays.origin)
        return levels
    if arrays.levels is None and config.dequantize == "auto":
        what = f"images hold whole numbers from {low:g} to {high:g}, whose density has no bound"
        do = "Set data.dequantize to how many levels there are, or to false to take them as real numbers."
        raise DataError(what, where=arrays.origin, do=do)
    return arrays.levels


def _refuse_levels(low: float, high: float, levels: int, name: str, where: str) -> None:
    if low < 0 or high >= levels:
        what = f"{name} has {low if low < 0 else high:g}, and {levels} levels are 0 to {levels - 1}"
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
        DataError: when there are far too many.
    """
    if len(found) > MOST_CLASSES:
        what = f"{name} has {len(found)} different values, too many to be classes"
        do = "Leave data.label out, or, to condition on it as a number, put it in brackets: data.label=[...]."
        raise DataError(what, where=where, do=do)
    order = sorted(range(len(found)), key=lambda i: found[i])
    rank = np.empty(len(found), np.int64)
    rank[order] = np.arange(len(found))
    return rank[number], tuple(str(found[i]) for i in order)
