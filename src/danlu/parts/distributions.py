"""Distributions over actions, as a network's outputs speak of them; densities and entropies written out.

    of a choice of A:     log p(a) = z_a - log sum_b exp z_b,      H = - sum_a p(a) log p(a)
    of numbers:           log p(a) = - sum_i [ (a_i - m_i)^2 / (2 s_i^2) + log s_i + log(2 pi) / 2 ],
                          H = sum_i [ log s_i + (1 + log(2 pi)) / 2 ]

The network says the logits z, or the means m; the logarithms of the deviations s are numbers of the policy's own,
alike for all observations. Numbers are drawn as they come: who acts in a world clips them to what it takes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from gymnasium import Space
from gymnasium.spaces import Box, Discrete
from jaxtyping import Float
from torch import Tensor

from danlu.errors import UnsupportedError

_LOG_2PI = math.log(2 * math.pi)


class Family(ABC):
    """A family of distributions.

    Attributes:
        outputs: numbers that a network says of each observation.
        own: numbers that are alike for all observations.
    """

    outputs: int
    own: int

    @abstractmethod
    def draw(
        self, outputs: np.ndarray, own: np.ndarray, chance: torch.Generator | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """One action a row, and the logarithm of its probability or density.

        Args:
            outputs: ``[N, outputs]``.
            own: ``[own]``.
            chance: None takes the likeliest.
        """

    @abstractmethod
    def log_prob(self, outputs: Float[Tensor, "B O"], own: Tensor, actions: Tensor) -> Float[Tensor, " B"]:
        """The logarithm of each action's probability or density."""

    @abstractmethod
    def slope(
        self, outputs: Float[Tensor, "B O"], own: Tensor, actions: Tensor, pull: Float[Tensor, " B"], calm: float
    ) -> tuple[Float[Tensor, "B O"], Tensor]:
        """The gradient of sum_i pull_i log p(a_i) + calm H_i, pull being fixed, by the outputs and the own numbers."""

    @abstractmethod
    def entropy(self, outputs: Float[Tensor, "B O"], own: Tensor) -> Float[Tensor, " B"]:
        """The entropy at each row, in nats."""

    @abstractmethod
    def kl(self, outputs: Float[Tensor, "B O"], own: Tensor, others: Float[Tensor, "B O"], other: Tensor) -> Tensor:
        """KL(these || others) at each row, in nats, ``[B]``."""


class Categorical(Family):
    """One of A choices.

    Args:
        num: A.
        start: the first choice's number.
    """

    def __init__(self, num: int, start: int = 0) -> None:
        self.outputs, self.own, self.start = num, 0, start

    def draw(
        self, outputs: np.ndarray, own: np.ndarray, chance: torch.Generator | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """By the inverse of the cumulative distribution."""
        logits = outputs - outputs.max(1, keepdims=True)
        below = np.exp(logits).cumsum(1)
        if chance is None:
            actions = logits.argmax(1)
        else:
            u = torch.rand(len(logits), generator=chance).numpy()
            actions = (below < (u * below[:, -1])[:, None]).sum(1)
        log_prob = logits[np.arange(len(logits)), actions] - np.log(below[:, -1])
        return actions + self.start if self.start else actions, log_prob

    def log_prob(self, outputs: Float[Tensor, "B O"], own: Tensor, actions: Tensor) -> Float[Tensor, " B"]:
        """See `Family`; actions ``[B]``."""
        chosen = actions - self.start if self.start else actions
        return outputs.log_softmax(1).gather(1, chosen[:, None]).squeeze(1)

    def slope(
        self, outputs: Float[Tensor, "B O"], own: Tensor, actions: Tensor, pull: Float[Tensor, " B"], calm: float
    ) -> tuple[Float[Tensor, "B O"], Tensor]:
        """See `Family`: of log p(a) it is 1[a] - p, of the entropy - p (log p + H)."""
        chosen, p, c = (actions - self.start if self.start else actions)[:, None], outputs.softmax(1), pull[:, None]
        found = (p * -c).scatter_add_(1, chosen, c)
        if calm:
            log_p = outputs.log_softmax(1)
            found -= calm * p * (log_p - (p * log_p).sum(1, keepdim=True))
        return found, own

    def entropy(self, outputs: Float[Tensor, "B O"], own: Tensor) -> Float[Tensor, " B"]:
        """See `Family`."""
        log_p = outputs.log_softmax(1)
        return -(log_p.exp() * log_p).sum(1)

    def kl(self, outputs: Float[Tensor, "B O"], own: Tensor, others: Float[Tensor, "B O"], other: Tensor) -> Tensor:
        """See `Family`."""
        log_p = outputs.log_softmax(1)
        return (log_p.exp() * (log_p - others.log_softmax(1))).sum(1)


class DiagonalGaussian(Family):
    """A numbers, each normal and independent of the others, their log deviations alike for all observations.

    Args:
        num: A.
    """

    def __init__(self, num: int) -> None:
        self.outputs = self.own = num

    def draw(
        self, outputs: np.ndarray, own: np.ndarray, chance: torch.Generator | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """A mean, and noise."""
        constant = float(own.sum()) + 0.5 * self.outputs * _LOG_2PI
        if chance is None:
            return outputs, np.full(len(outputs), -constant, outputs.dtype)
        noise = torch.randn(outputs.shape, generator=chance).numpy()
        return outputs + np.exp(own) * noise, -0.5 * np.square(noise).sum(1) - outputs.dtype.type(constant)

    def log_prob(self, outputs: Float[Tensor, "B O"], own: Tensor, actions: Tensor) -> Float[Tensor, " B"]:
        """See `Family`; actions ``[B, A]``."""
        z = (actions - outputs) * (-own).exp()
        return -0.5 * z.square().sum(1) - (own.sum() + 0.5 * self.outputs * _LOG_2PI)

    def slope(
        self, outputs: Float[Tensor, "B O"], own: Tensor, actions: Tensor, pull: Float[Tensor, " B"], calm: float
    ) -> tuple[Float[Tensor, "B O"], Tensor]:
        """See `Family`: of log p(a) it is z / s with z = (a - m) / s, and z^2 - 1; of the entropy nothing, and 1."""
        inverse, c = (-own).exp(), pull[:, None]
        z = (actions - outputs) * inverse
        return c * z * inverse, (c * (z.square() - 1)).sum(0) + calm * len(outputs)

    def entropy(self, outputs: Float[Tensor, "B O"], own: Tensor) -> Float[Tensor, " B"]:
        """See `Family`."""
        return (own.sum() + 0.5 * self.outputs * (1 + _LOG_2PI)).expand(len(outputs))

    def kl(self, outputs: Float[Tensor, "B O"], own: Tensor, others: Float[Tensor, "B O"], other: Tensor) -> Tensor:
        """See `Family`."""
        apart = (outputs - others).square() * (-2 * other).exp()
        return (other - own + 0.5 * ((2 * (own - other)).exp() + apart - 1)).sum(1)


def family_of(action: Space[Any]) -> Family:
    """The family of policies over an action space.

    Raises:
        UnsupportedError: for actions that are neither a choice nor numbers.
    """
    if isinstance(action, Discrete):
        return Categorical(int(action.n), int(action.start))
    if isinstance(action, Box):
        return DiagonalGaussian(math.prod(action.shape))
    raise UnsupportedError(f"no policy here is over {action}", where="data.env", do="Choose Discrete or Box actions.")
