"""The incremental mean: the mean of what was seen so far, without keeping what was seen.

    w_k = w_k-1 - (1 / k) (w_k-1 - x_k)   =   (x_1 + ... + x_k) / k       exactly, whatever w_0 was

It is the Robbins-Monro step for ``g(w) = w - E[X]`` with a_k = 1/k, and the heart of every Monte Carlo method.

References:
    Robbins and Monro, 1951, "A stochastic approximation method", https://doi.org/10.1214/aoms/1177729586
    Zhao, 2025, "Mathematical foundations of reinforcement learning", section 6.1
"""

from __future__ import annotations

from typing import Any

import numpy as np

from danlu.method.approximation import Approximation
from danlu.registry import export


@export("method", "incremental_mean", source="Robbins and Monro, 1951, https://doi.org/10.1214/aoms/1177729586")
class IncrementalMean(Approximation):
    """The incremental mean: of a random number's values as they are seen."""

    mean: float = 5.0
    """Of the random number, which is normal."""
    start: float = 0.0
    """The first guess; the first value seen takes its place."""

    def first(self) -> list[float]:
        """See `Approximation`."""
        return [self.start]

    def sought(self) -> np.ndarray:
        """See `Approximation`."""
        return np.array([self.mean])

    def step(self, w: np.ndarray, k: int, chance: np.random.Generator) -> tuple[np.ndarray, float]:
        """See `Approximation`."""
        return incremented(w, self.mean + self.noise * chance.standard_normal(1), k), 1 / k


def incremented(w: Any, x: Any, k: int) -> Any:
    """The mean of k values, from that of the k - 1 before and the k-th; of whatever numbers.

    Example:
        >>> from fractions import Fraction
        >>> w = Fraction(7)
        >>> for k, x in enumerate([1, 2, 4], 1):
        ...     w = incremented(w, Fraction(x), k)
        >>> w
        Fraction(7, 3)
    """
    return w - (w - x) / k
