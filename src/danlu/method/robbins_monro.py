"""Robbins and Monro's algorithm: the root of a function that is not known, from its value seen with noise.

    w_k+1 = w_k - a_k ( g(w_k) + eta_k )

w comes to the root of g with probability one where

    0 < c1 <= g'(w) <= c2                       g rises, not too steeply
    sum a_k = inf,  sum a_k^2 < inf             see `danlu.method.step_size`
    E[eta_k | before] = 0,  E[eta_k^2 | before] bounded

`cubic` breaks the first: from a start not near its root a first step of size 1 leads further away, and so on.

References:
    Robbins and Monro, 1951, "A stochastic approximation method", https://doi.org/10.1214/aoms/1177729586
    Zhao, 2025, "Mathematical foundations of reinforcement learning", section 6.2
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from danlu.method.approximation import Approximation
from danlu.method.step_size import StepSize
from danlu.registry import export


@export("method", "robbins_monro", source="Robbins and Monro, 1951, https://doi.org/10.1214/aoms/1177729586")
class RobbinsMonro(Approximation):
    """Robbins and Monro's algorithm: finds where a function is 0 that is only seen with noise."""

    function: Literal["tanh", "cubic", "linear", "mean"] = "tanh"
    """tanh(w - 1), w^3 - 5, w - 10, or w - E[X], which is seen as w - x with x drawn anew."""
    mean: float = 5.0
    """E[X] (mean)."""
    start: float = 3.0
    """The first guess."""
    step_size: StepSize = StepSize(kind="harmonic")
    """a_k."""

    def first(self) -> list[float]:
        """See `Approximation`."""
        return [self.start]

    def sought(self) -> np.ndarray:
        """See `Approximation`."""
        return np.array([self.mean if self.function == "mean" else _ROOTS[self.function]])

    def step(self, w: np.ndarray, k: int, chance: np.random.Generator) -> tuple[np.ndarray, float]:
        """See `Approximation`."""
        looked = self.seen(w, self.noise * chance.standard_normal(1))
        return w - self.step_size.move(looked, k), self.step_size.at(k)

    def seen(self, w: Any, noise: Any) -> Any:
        """The function with noise, of whatever numbers."""
        if self.function == "mean":
            return w - (self.mean + noise)
        if self.function == "linear":
            return w - 10 + noise
        return (w**3 - 5 if self.function == "cubic" else np.tanh(w - 1)) + noise


_ROOTS = {"tanh": 1.0, "cubic": 5.0 ** (1 / 3), "linear": 10.0}
