"""How long rows are, and how full they make packs."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import final

import numpy as np

from danlu.data.packing import pack

_EXACT = 1 << 16
"""Longer rows are counted to three digits, so that a histogram has no more than some ten thousand entries."""
_NUM_BARS = 32
_SHOWN = 0.995
"""The bars end near this quantile, or a few very long rows would squeeze all others into one."""
_WINDOW = 1 << 15


@dataclass(frozen=True)
class Histogram:
    """Bars of equal width from 0 on.

    Attributes:
        edges: where each bar begins, and where the last one ends; without that end it holds all that is longer as well.
        counts: rows of each bar.
        median: tokens of the middle row.
        most: tokens that 99 of 100 rows do not exceed.
        longest: tokens of the longest row.
    """

    edges: tuple[int, ...]
    counts: tuple[int, ...]
    median: int
    most: int
    longest: int


@final
class Lengths:
    """Counts rows by their tokens."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._longest = 0

    def add(self, length: int) -> None:
        """Count one row."""
        self._longest = max(self._longest, length)
        if length > _EXACT:
            size: int = 10 ** (len(str(length)) - 3)
            length = length // size * size
        self._counts[length] += 1

    def histogram(self) -> Histogram:
        """The bars, whose width is a round number."""
        if not self._counts:
            return Histogram((), (), 0, 0, 0)
        lengths = np.array(sorted(self._counts))
        counts = np.array([self._counts[length] for length in lengths.tolist()])
        width = _round_up(max(self._quantile(_SHOWN), 1) / _NUM_BARS)
        bar = np.minimum(lengths // width, min(_NUM_BARS, self._longest // width))
        bars = np.bincount(bar, weights=counts).astype(int).tolist()
        quantiles = (self._quantile(0.5), self._quantile(0.99), self._longest)
        closed = self._longest < width * len(bars)
        edges = tuple(width * index for index in range(len(bars) + closed))
        return Histogram(edges, tuple(bars), *quantiles)

    def _quantile(self, share: float) -> int:
        wanted = share * self._counts.total()
        for length in sorted(self._counts):
            wanted -= self._counts[length]
            if wanted <= 1e-9:
                return length
        raise AssertionError("the shares of all lengths are one")


@final
class Packing:
    """Packs samples as the run will, some ten thousand at a time, and counts how full the packs are."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._waiting: list[int] = []
        self._tokens = 0
        self._packs = 0

    def add(self, lengths: list[int]) -> None:
        """Samples of so many tokens; one that is longer than a pack is taken for a full one."""
        self._waiting += [min(length, self._budget) for length in lengths]
        if len(self._waiting) >= _WINDOW:
            self._pack_waiting()

    def efficiency(self) -> float | None:
        """Tokens of samples as a share of what all packs can hold; None where there is no sample."""
        self._pack_waiting()
        return self._tokens / (self._packs * self._budget) if self._packs else None

    def _pack_waiting(self) -> None:
        self._tokens += sum(self._waiting)
        self._packs += len(pack(self._waiting, self._budget))
        self._waiting = []


def _round_up(value: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50 ...

    Example:
        >>> [_round_up(value) for value in (0.2, 3, 50, 51)]
        [1, 5, 50, 100]
    """
    size = 10 ** math.floor(math.log10(max(value, 1)))
    return int(next(digit * size for digit in (1, 2, 5, 10) if digit * size >= value))
