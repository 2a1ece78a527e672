"""Times: where on a path a row is asked about, and how a network is told the time.

    uniform        t = u
    logit_normal   t = sigmoid(z), z standard normal: more of the middle, where the answer is least known
    beta           t = 0.001 + 0.999 s towards the noise, s ~ Beta(1.5, 1): more of where there is nearly only noise

A network is told sin and cos of some frequencies times t.

References:
    Esser et al., 2024, "Scaling rectified flow transformers" (logit-normal), https://arxiv.org/abs/2403.03206
    Black et al., 2024, "pi0" (beta), https://arxiv.org/abs/2410.24164
    Vaswani et al., 2017, "Attention is all you need" (sinusoids), https://arxiv.org/abs/1706.03762
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from danlu.random import uniform

Times: TypeAlias = Literal["uniform", "logit_normal", "beta"]
"""How times are spread."""


def times_of(u: Float[Tensor, " N"], times: Times, noise_at: Literal[0, 1] = 0) -> Float[Tensor, " N"]:
    """Times in [0, 1], from numbers that are uniform in (0, 1).

    Args:
        u: one a row.
        times: how they are spread.
        noise_at: the time at which there is noise, which beta leans to.
    """
    if times == "uniform":
        return u
    if times == "logit_normal":
        return torch.special.ndtri(u).sigmoid()
    towards = u.pow(1 / 1.5).mul(0.999).add(0.001)  # u^(1/a) is Beta(a, 1)
    return towards if noise_at else 1 - towards


def harmonic(num: int) -> Float[Tensor, " F"]:
    """The frequencies pi, 2 pi, ... of a time in [0, 1], the slowest of which is half a turn: a smooth clock.

    Args:
        num: how many.
    """
    return torch.arange(1, num + 1) * math.pi


def geometric(num: int, longest: float, shortest: float) -> Float[Tensor, " F"]:
    """Frequencies whose periods shrink by one ratio: a clock with hands from slow to fast.

    Args:
        num: how many.
        longest: the first's period, in the time's units.
        shortest: the last's.
    """
    return 2 * math.pi / torch.logspace(math.log10(longest), math.log10(shortest), num)


class Clock(nn.Module):
    """A time as numbers: cos(f t) of every frequency f, and behind these sin(f t).

    Args:
        frequencies: radians per unit of time.
    """

    def __init__(self, frequencies: Float[Tensor, " F"]) -> None:
        super().__init__()
        num = len(frequencies)
        self.register_buffer("frequencies", frequencies.float().repeat(2), persistent=False)
        self.register_buffer("phases", torch.tensor([math.pi / 2, 0.0]).repeat_interleave(num), persistent=False)
        self.frequencies: Tensor
        self.phases: Tensor

    def __len__(self) -> int:
        """How many numbers a time becomes."""
        return len(self.frequencies)

    def forward(self, t: Float[Tensor, " N"]) -> Float[Tensor, "N E"]:
        """Of times."""
        return torch.addcmul(self.phases, t[:, None], self.frequencies).sin_()

    def at(self, t: float) -> Float[Tensor, " E"]:
        """Of one time."""
        return torch.add(self.phases, self.frequencies, alpha=t).sin_()


def noise_and_shares(
    keys: Int[Tensor, " N"], place: int, num: int, shares: int
) -> tuple[Float[Tensor, "N num"], tuple[Float[Tensor, " N"], ...]]:
    """Standard normal numbers, and beside them numbers that are uniform in (0, 1), in one go.

    Args:
        keys: one a row.
        place: see `danlu.random.uniform`.
        num: how many normal numbers a row gets.
        shares: how many uniform ones.
    """
    u = uniform(keys, place, 2 * num + shares)
    noise = (-2 * u[:, :num].log()).sqrt() * (2 * math.pi * u[:, num : 2 * num]).cos()
    return noise, u[:, 2 * num :].unbind(1)
