"""Rows of one shape, with what they are conditioned on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import xxhash
from jaxtyping import Bool, Float, Float64, Int64

from danlu.errors import DataError

_LOOKED_AT = 1 << 16
"""Rows that a fingerprint is made of, at most."""
Kind: TypeAlias = Literal["toy", "table", "image"]
"""Points of a toy, rows of a table, or images."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What columns hold, an image's numbers being columns one after another.

    Attributes:
        low: the least number of each, ``[D]``.
        high: the greatest.
        whole: whether all are whole numbers.
    """

    low: Float64[np.ndarray, " D"]
    high: Float64[np.ndarray, " D"]
    whole: Bool[np.ndarray, " D"]


@dataclass(frozen=True, eq=False)
class Arrays:
    """Rows of one shape.

    Attributes:
        x: as they are kept, ``[M, *shape]`` of any number's type; on disk, it may be.
        condition: classes ``[M]`` (int64), or numbers ``[M, features]`` (float32); None where there are none.
        kind: what they are.
        origin: the file, folder or name they come from.
        columns: the name of each column; none of images.
        classes: the name of each class; none where rows are not conditioned on one.
        features: the names of the numbers they are conditioned on; none where there are none.
        label: what the classes are called as a column; "" where there are none, or it has no name.
        whole: the columns (or, of images, channels) of whole numbers that are to be dequantised, ``[D]`` or ``[C]``.
        levels: how many levels these have, from 0; None where that is not known.
        seen: what the columns of `x` hold; None where that is not asked.
        rows: which rows of `x` there are, in order; None: all.
    """

    x: np.ndarray
    condition: np.ndarray | None = None
    kind: Kind = "table"
    origin: str = ""
    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    whole: tuple[bool, ...] = ()
    levels: int | None = None
    seen: Seen | None = None
    rows: Int64[np.ndarray, " N"] | None = None
    label: str = ""

    def __len__(self) -> int:
        return len(self.x) if self.rows is None else len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row."""
        return self.x.shape[1:]

    @property
    def size(self) -> int:
        """How many numbers a row has."""
        return math.prod(self.shape)

    def take(self, indices: Int64[np.ndarray, " B"]) -> tuple[Float[np.ndarray, "B ..."], np.ndarray | None]:
        """Some rows in float32, and what they are conditioned on.

        Args:
            indices: which, ``0 <= index < N``.
        """
        if self.rows is not None:
            indices = self.rows[indices]
        x = self.x.take(indices, 0)
        if x.dtype != np.float32:
            x = x.astype(np.float32)
        return x, None if self.condition is None else self.condition.take(indices, 0)

    def fingerprint(self) -> str:
        """By which these rows are told from others: of many, of some all over them."""
        some = np.unique(np.linspace(0, len(self) - 1, min(len(self), _LOOKED_AT)).astype(np.int64))
        x, condition = self.take(some)
        hashed = xxhash.xxh3_64(repr((len(self), self.shape, str(self.x.dtype))).encode())
        for array in (x, condition):
            hashed.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
        return hashed.hexdigest()

    def part(self, rows: Int64[np.ndarray, " B"]) -> Arrays:
        """Some of the rows, which are not copied where they lie on disk."""
        if isinstance(self.x, np.memmap) or self.rows is not None:
            return replace(self, rows=rows if self.rows is None else self.rows[rows])
        condition = None if self.condition is None else self.condition[rows]
        return replace(self, x=self.x[rows], condition=condition)

    def like(self, other: Arrays) -> Arrays:
        """The same with its classes numbered as another's are, of which it must be a part.

        Raises:
            DataError: when rows are of another shape or other columns, or have a class that is not known there.
        """
        if self.shape != other.shape:
            what = f"rows of shape {self.shape} are held out of rows of shape {other.shape}"
            raise DataError(what, where=self.origin, do="Give data.held_out the same columns or image sizes.")
        if self.columns != other.columns:
            told, known = ", ".join(self.columns), ", ".join(other.columns)
            alike = sorted(self.columns) == sorted(other.columns)
            what = f"the columns {told} are not {'in the order of' if alike else 'those of'} {other.origin}"
            do = "Say their order by data.columns" if alike else "Name them as there"
            raise DataError(what, where=self.origin, do=f"{do}: {known}.")
        if bool(self.classes) != bool(other.classes) or len(self.features) != len(other.features):
            raise DataError(
                f"rows have other labels than those of {other.origin}", where=self.origin, do="Save both alike."
            )
        strange = sorted(set(self.classes) - set(other.classes))
        if strange:
            what = f"the class '{strange[0]}' is held out and never trained on"
            raise DataError(what, where=self.origin, do="Leave its rows out, or train on some of it.")
        condition = self.condition
        if condition is not None and self.classes:
            condition = np.array([other.classes.index(name) for name in self.classes], np.int64)[condition]
        return replace(self, condition=condition, classes=other.classes, whole=other.whole, levels=other.levels)
