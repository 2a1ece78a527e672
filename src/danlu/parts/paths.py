"""Paths from noise to data that a field of velocities is learned from, and which noise goes with which data.

    x_t = a(t) noise + b(t) data,      u_t = dx_t / dt = a'(t) noise + b'(t) data

    linear          a = 1 - t,              b = t
    trigonometric   a = cos(pi t / 2),      b = sin(pi t / 2)      which keeps the variance of data whose variance is 1

A field that says the mean of u_t given x_t carries the distribution of noise along t to that of the data, whichever
noise is paired with which data. Pairs that are near make paths that hardly cross, and so are nearly straight.

References:
    Lipman et al., 2022, "Flow matching for generative modeling", https://arxiv.org/abs/2210.02747
    Albergo and Vanden-Eijnden, 2022, "Building normalizing flows with stochastic interpolants" (trigonometric),
    https://arxiv.org/abs/2209.15571
    Tong et al., 2023, "Improving and generalizing flow-based generative models with minibatch optimal transport",
    https://arxiv.org/abs/2302.00482
    Black et al., 2024, "pi0" (noise at time 1), https://arxiv.org/abs/2410.24164
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from danlu.errors import UnsupportedError

PathName: TypeAlias = Literal["linear", "trigonometric"]
"""The paths there are."""

_MISSING = importlib.util.find_spec("scipy") is None


@dataclass(frozen=True)
class Path(ABC):
    """A way from noise to data.

    Attributes:
        noise_at: the time at which there is noise, 0 or 1; data are at the other.
    """

    noise_at: Literal[0, 1] = 0

    @property
    def data_at(self) -> int:
        """The time at which there are data."""
        return 1 - self.noise_at

    @abstractmethod
    def weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """What of noise and of data is in x, t being the share of the way from noise to data."""

    @abstractmethod
    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """How fast these change."""

    def at(
        self, t: Float[Tensor, " N"], noise: Float[Tensor, "N ..."], data: Float[Tensor, "N ..."]
    ) -> Float[Tensor, "N ..."]:
        """Where each row is at its time, x_t."""
        a, b = self.weights(_wide(1 - t if self.noise_at else t, noise))
        return torch.addcmul(a * noise, b, data)

    def velocity(
        self, t: Float[Tensor, " N"], noise: Float[Tensor, "N ..."], data: Float[Tensor, "N ..."]
    ) -> Float[Tensor, "N ..."]:
        """How fast each row goes there, u_t, as time goes on."""
        a, b = self.slopes(_wide(1 - t if self.noise_at else t, noise))
        u = torch.addcmul(a * noise, b, data)
        return -u if self.noise_at else u


@dataclass(frozen=True)
class LinearPath(Path):
    """Straight, at an even pace: noise and data in the shares 1 - t and t."""

    def weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See `Path`."""
        return 1 - t, t

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See `Path`."""
        one = torch.ones((), dtype=t.dtype, device=t.device)
        return -one, one

    def at(
        self, t: Float[Tensor, " N"], noise: Float[Tensor, "N ..."], data: Float[Tensor, "N ..."]
    ) -> Float[Tensor, "N ..."]:
        """See `Path`."""
        first, last = (data, noise) if self.noise_at else (noise, data)
        return torch.lerp(first, last, _wide(t, noise))

    def velocity(
        self, t: Float[Tensor, " N"], noise: Float[Tensor, "N ..."], data: Float[Tensor, "N ..."]
    ) -> Float[Tensor, "N ..."]:
        """See `Path`."""
        return noise - data if self.noise_at else data - noise


@dataclass(frozen=True)
class TrigonometricPath(Path):
    """Along a quarter of a circle: noise and data in the shares cos(pi t / 2) and sin(pi t / 2)."""

    def weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See `Path`."""
        angle = t * (math.pi / 2)
        return angle.cos(), angle.sin()

    def slopes(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """See `Path`."""
        a, b = self.weights(t)
        return b * (-math.pi / 2), a * (math.pi / 2)


PATHS: dict[PathName, Path] = {"linear": LinearPath(), "trigonometric": TrigonometricPath()}
"""Each with noise at time 0."""


def _wide(t: Tensor, x: Tensor) -> Tensor:
    """A number a row, to go with the row's numbers."""
    return t.view(-1, *(1,) * (x.dim() - 1))


def nearest_noise(
    noise: Float[Tensor, "N ..."],
    data: Float[Tensor, "N ..."],
    parts: Sequence[int],
    classes: Int[Tensor, " N"] | None = None,
) -> Int[Tensor, " N"]:
    """Which noise each row of data is paired with, so that the squared distances of all pairs are least in sum.

    Pairs are made within each part for itself, and within a class: noise that went to the rows of a class for being
    near them would no longer be standard normal for that class, which is what it is when rows of it are made.

    Args:
        noise: as many as there are data.
        data: rows.
        parts: how many rows each group has, in order.
        classes: what each row is conditioned on.

    Returns:
        Its row among all.

    Raises:
        UnsupportedError: when `scipy` is not installed.
    """
    if _MISSING:
        what = "optimal transport between noise and rows is solved by scipy, which is not installed"
        do = "Install it with `pip install 'danlu[density]'`, or set it to none."
        raise UnsupportedError(what, where="method.pairing", do=do)
    assign: Any = importlib.import_module("scipy.optimize").linear_sum_assignment
    own = torch.arange(len(data))
    found = own.clone()
    kinds = None if classes is None else classes.cpu()
    for rows in own.split(list(parts)):
        for some in [rows] if kinds is None else [rows[kinds[rows] == c] for c in kinds[rows].unique()]:
            apart = torch.cdist(noise[some].flatten(1).double(), data[some].flatten(1).double()).square_()
            to_noise, to_data = (torch.from_numpy(way) for way in assign(apart.cpu().numpy()))
            found[some[to_data]] = some[to_noise]
    return found.to(data.device)
