"""Stochastic gradient descent: Robbins and Monro's algorithm for the root of a gradient.

    minimise E[ f(w, X) ]            w_k+1 = w_k - a_k (1 / m) sum_i grad f(w_k, x_i)

over m values drawn at each step: m = 1 is stochastic gradient descent, more a mini-batch; what is seen of the gradient
is the gradient and noise of variance 1/m. Far from the minimum the noise is small beside it, and the way is nearly
straight.

    mean        f = 1/2 |w - X|^2                                minimum at E[X]
    regression  f = 1/2 (w . X - Y)^2,  Y = w* . X + noise       minimum at w*

References:
    Robbins and Monro, 1951, "A stochastic approximation method", https://doi.org/10.1214/aoms/1177729586
    Zhao, 2025, "Mathematical foundations of reinforcement learning", sections 6.3 to 6.5
"""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from danlu.method.approximation import Approximation
from danlu.method.step_size import StepSize
from danlu.registry import export


@export("method", "stochastic_gradient", source="Robbins and Monro, 1951, https://doi.org/10.1214/aoms/1177729586")
class StochasticGradient(Approximation):
    """Stochastic gradient descent: finds a mean, or a regression's weights, from what is drawn."""

    problem: Literal["mean", "regression"] = "mean"
    """What is looked for."""
    solution: tuple[float, ...] = Field((5.0, -2.0), min_length=1)
    """Where it is: E[X], or the regression's weights."""
    start: tuple[float, ...] = ()
    """The first guess; empty for 0 everywhere."""
    batch: int = Field(1, ge=1)
    """Values drawn at each step, m."""
    step_size: StepSize = StepSize(kind="polynomial", start=1.0)
    """a_k."""

    @model_validator(mode="after")
    def _as_long(self) -> Self:
        if self.start and len(self.start) != len(self.solution):
            raise ValueError(f"start has {len(self.start)} numbers, and solution has {len(self.solution)}")
        return self

    def first(self) -> list[float]:
        """See `Approximation`."""
        return list(self.start) or [0.0] * len(self.solution)

    def sought(self) -> np.ndarray:
        """See `Approximation`."""
        return np.array(self.solution)

    def step(self, w: np.ndarray, k: int, chance: np.random.Generator) -> tuple[np.ndarray, float]:
        """See `Approximation`."""
        drawn = chance.standard_normal((self.batch, len(w)))
        if self.problem == "mean":
            gradient = (w - (self.sought() + self.noise * drawn)).mean(0)
        else:
            target = drawn @ self.sought() + self.noise * chance.standard_normal(self.batch)
            gradient = ((drawn @ w - target)[:, None] * drawn).mean(0)
        return w - self.step_size.move(gradient, k), self.step_size.at(k)
