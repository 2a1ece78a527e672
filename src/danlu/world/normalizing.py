"""Observations and rewards brought to unit scale by what has been seen so far.

References:
    Chan, Golub and LeVeque, 1983, "Algorithms for computing the sample variance",
    https://doi.org/10.1080/00031305.1983.10483115 Engstrom et al., 2020, "Implementation matters in deep policy
    gradients", https://arxiv.org/abs/2005.12729
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from danlu.world.history import from_text, to_text

_FIRST = 1e-4  # weight of the guess that the mean is 0 and the variance 1
_LEAST = 1e-8  # added to a variance


class Running:
    """The mean and the variance of all that was seen, in float64.

    Args:
        shape: of one value.

    Attributes:
        mean: of all values.
        variance: of all values.
        count: how many there were.

    Example:
        >>> seen = Running(())
        >>> seen.see(np.array([1.0, 2.0, 3.0]))
        >>> round(float(seen.mean), 3), round(float(seen.variance), 3)
        (2.0, 0.667)
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.mean = np.zeros(shape)
        self.variance = np.ones(shape)
        self.count = _FIRST

    def see(self, values: np.ndarray) -> None:
        """Take in some more values, ``[N, ...]``."""
        count = len(values)
        mean = values.mean(0, dtype=np.float64)
        delta, total = mean - self.mean, self.count + count
        squares = self.variance * self.count + values.var(0, dtype=np.float64) * count
        self.variance = (squares + np.square(delta) * self.count * count / total) / total
        self.mean = self.mean + delta * count / total
        self.count = total

    @property
    def scale(self) -> np.ndarray:
        """The standard deviation, never zero."""
        return np.asarray(np.sqrt(self.variance + _LEAST))

    def save(self) -> dict[str, Any]:
        """As JSON, to the bit."""
        return {"mean": to_text(self.mean), "variance": to_text(self.variance), "count": self.count}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Put back what `save` gave."""
        self.mean, self.variance = from_text(saved["mean"]), from_text(saved["variance"])
        self.count = float(saved["count"])


class Statistics:
    """What is known of observations and rewards.

    Args:
        shape: of one observation; None where observations stay as they are.
        gamma: discount of the returns whose spread rewards are divided by; None where rewards stay as they are.

    Attributes:
        observations: None where they stay as they are.
        returns: None where rewards stay as they are.
        gamma: see above.
    """

    def __init__(self, shape: tuple[int, ...] | None, gamma: float | None) -> None:
        self.observations = None if shape is None else Running(shape)
        self.returns = None if gamma is None else Running(())
        self.gamma = 1.0 if gamma is None else gamma

    def normal(self, observations: np.ndarray) -> np.ndarray:
        """Observations of mean 0 and variance 1, ``[N, ...]`` float32."""
        seen = self.observations
        return observations if seen is None else ((observations - seen.mean) / seen.scale).astype(np.float32)

    def save(self) -> dict[str, Any]:
        """As JSON, to the bit."""
        return {
            "observations": None if self.observations is None else self.observations.save(),
            "returns": None if self.returns is None else self.returns.save(),
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        """Put back what `save` gave."""
        if self.observations is not None and saved["observations"] is not None:
            self.observations.load(saved["observations"])
        if self.returns is not None and saved["returns"] is not None:
            self.returns.load(saved["returns"])
