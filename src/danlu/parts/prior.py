"""What a flow's noise is distributed as: its numbers are independent and alike."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from danlu.random import normal, place_key, uniform


class Prior(ABC):
    """A distribution of vectors whose elements are independent and alike."""

    @abstractmethod
    def log_prob(self, z: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
        """The log density of each vector, in nats."""

    @abstractmethod
    def slope(self, z: Tensor) -> Tensor:
        """The derivative of the log density by each element, in the shape of z."""

    @abstractmethod
    def noise(self, keys: Int[Tensor, " N"], num: int) -> Float[Tensor, "N D"]:
        """A vector of `num` elements for each key, a function of it."""


class StandardNormal(Prior):
    """log p(z) = - |z|^2 / 2 - (D / 2) log 2 pi."""

    def log_prob(self, z: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
        """See `Prior`."""
        return z.square().sum(1).mul(-0.5).sub(0.5 * math.log(2 * math.pi) * z.shape[1])

    def slope(self, z: Tensor) -> Tensor:
        """See `Prior`."""
        return -z

    def noise(self, keys: Int[Tensor, " N"], num: int) -> Float[Tensor, "N D"]:
        """See `Prior`."""
        return normal(keys, _NORMAL, num)


class Logistic(Prior):
    """log p(z) = - sum_i [ log(1 + exp z_i) + log(1 + exp -z_i) ], whose tails are heavier than the normal's.

    References:
        Dinh et al., 2014, "NICE: non-linear independent components estimation", https://arxiv.org/abs/1410.8516
    """

    def log_prob(self, z: Float[Tensor, "N D"]) -> Float[Tensor, " N"]:
        """See `Prior`."""
        return z.sub(F.softplus(z), alpha=2).sum(1)

    def slope(self, z: Tensor) -> Tensor:
        """See `Prior`."""
        return -torch.tanh(z / 2)

    def noise(self, keys: Int[Tensor, " N"], num: int) -> Float[Tensor, "N D"]:
        """See `Prior`: the inverse of the distribution function, z = log u - log(1 - u)."""
        u = uniform(keys, _LOGISTIC, num)
        return u.log() - (-u).log1p()


_NORMAL, _LOGISTIC = place_key("prior.normal"), place_key("prior.logistic")
