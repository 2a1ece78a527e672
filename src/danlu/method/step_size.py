"""Step sizes of stochastic approximation, ``w_k+1 = w_k + a_k (goal_k - w_k)``.

With noise in what is seen, w comes to the root with probability one where (Robbins and Monro)

    sum_k a_k = inf        the steps reach it from wherever they begin,
    sum_k a_k^2 < inf      the noise in them dies out,

where the function rises, neither flatter nor steeper than some lines, and the noise has mean 0 and bounded variance
given what came before. 1/k is the sample mean; c/k^p does for 1/2 < p <= 1. A constant step breaks the second
condition: w then stays within a noise of size sqrt(a) about the root, and follows it where it moves, as it does while a
policy improves.

References:
    Robbins and Monro, 1951, "A stochastic approximation method", https://doi.org/10.1214/aoms/1177729586
    Dvoretzky, 1956, "On stochastic approximation", third Berkeley symposium on mathematical statistics
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from danlu.config import Config


class StepSize(Config):
    """How far each step goes of the way that it sees, by how many went before it."""

    kind: Literal["constant", "harmonic", "polynomial"] = "constant"
    """`constant`: `start`; `harmonic`: 1/k at the k-th step, the mean of what was seen; `polynomial`: start / k^power.
    The first does not meet the conditions of Robbins and Monro, so that what is learnt is never at rest."""
    start: float = Field(0.1, gt=0)
    """The first step (constant, polynomial)."""
    power: float = Field(0.75, gt=0.5, le=1)
    """How fast steps shorten (polynomial): above 1/2 for noise to die out, at most 1 for steps to reach the goal."""

    @property
    def settles(self) -> bool:
        """Whether it meets the conditions of Robbins and Monro."""
        return self.kind != "constant"

    def at(self, k: int) -> float:
        """a_k, the k-th step's size, k = 1, 2, ..."""
        if self.kind == "constant":
            return self.start
        return 1 / k if self.kind == "harmonic" else self.start / k**self.power

    def move(self, gap: Any, k: int) -> Any:
        """a_k times what is left to go; exactly ``gap / k`` where harmonic, of whatever numbers."""
        return gap / k if self.kind == "harmonic" else gap * self.at(k)
