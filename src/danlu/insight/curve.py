"""A curve: one number watched over the steps of a run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True, eq=False)
class Curve:
    """Finite values at rising steps; it may be empty.

    Example:
        >>> curve = Curve.of([0, 1, 2, 3], [4.0, 2.0, float("nan"), 1.0])
        >>> curve.steps.tolist(), curve.values.tolist()
        ([0, 1, 3], [4.0, 2.0, 1.0])
    """

    steps: Int[np.ndarray, " N"]
    values: Float[np.ndarray, " N"]

    @classmethod
    def of(cls, steps: list[int] | Int[np.ndarray, " M"], values: list[float] | Float[np.ndarray, " M"]) -> Curve:
        """The finite points among these, which come in the order of their steps."""
        at, value = np.asarray(steps, dtype=np.int64), np.asarray(values, dtype=np.float64)
        return cls(at, value).where(np.isfinite(value))

    def __len__(self) -> int:
        return len(self.steps)

    def where(self, keep: Bool[np.ndarray, " N"]) -> Curve:
        """The points that are kept."""
        return Curve(self.steps[keep], self.values[keep])

    def smoothed(self, window: int) -> Curve:
        """The moving mean over about `window` points.

        The window is centred; it narrows on both sides at the start, where losses fall steeply, and only on the right
        at the end, so that the last value is a mean as well.
        """
        num, half = len(self), window // 2
        index = np.arange(num)
        low = np.maximum(index - half, 0)
        high = np.minimum(index + np.minimum(half, index) + 1, num)
        total = np.concatenate([[0.0], np.cumsum(self.values)])
        return Curve(self.steps, (total[high] - total[low]) / (high - low))

    def envelope(self, limit: int) -> Curve:
        """At most `limit` points that keep every peak: the smallest and the largest of each group of neighbours.

        Example:
            >>> Curve.of(list(range(8)), [0, 5, 1, 1, 1, -3, 1, 1]).envelope(4).values.tolist()
            [0.0, 5.0, 1.0, -3.0]
        """
        if len(self) <= limit:
            return self
        picked: list[int] = []
        for group in np.array_split(np.arange(len(self)), limit // 2):
            values = self.values[group]
            picked += sorted({int(group[values.argmin()]), int(group[values.argmax()])})
        return Curve(self.steps[picked], self.values[picked])

    def thinned(self, limit: int) -> Curve:
        """At most `limit` points, evenly apart, with both ends: for curves that are smooth already."""
        if len(self) <= limit:
            return self
        picked = np.linspace(0, len(self) - 1, limit).round().astype(np.int64)
        return Curve(self.steps[picked], self.values[picked])
