"""How data become noise in T small steps, in numbers that a diffusion model is made of.

    q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t),    alpha_t = 1 - beta_t,    abar_t = alpha_1 ... alpha_t
    q(x_t | x_0) = N(sqrt(abar_t) x_0, 1 - abar_t)

    linear    beta from 0.0001 to 0.02 in a thousand steps, and as much sooner in fewer
    cosine    abar_t = cos^2((t / T + s) / (1 + s) pi / 2), s = 0.008, over its value at 0; no beta above 0.999

References:
    Ho, Jain and Abbeel, 2020, "Denoising diffusion probabilistic models", https://arxiv.org/abs/2006.11239
    Nichol and Dhariwal, 2021, "Improved denoising diffusion probabilistic models" (cosine),
    https://arxiv.org/abs/2102.09672
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Schedule: TypeAlias = Literal["linear", "cosine"]
"""How the steps' noise grows."""


class Noising(nn.Module):
    """The steps from data to noise.

    Args:
        schedule: how their noise grows.
        steps: T, how many there are.

    Attributes:
        steps: T.
        kept: abar_0 = 1 to abar_T.
        betas: beta_1 to beta_T.
        shares: what of x_0 and what of the noise is in x_0 to x_T, sqrt(abar_t) and sqrt(1 - abar_t), ``[2, T + 1]``.
        slips: of the steps 1 to T, what the squared error of an estimate of the noise costs in twice a nat, x_{t-1}
            being drawn from N(mean, beta_t): beta_t / (alpha_t (1 - abar_t)).
        fixed: what the bound of the log-density costs a number whatever is learned, but for x_T's part, in nats.
    """

    def __init__(self, schedule: Schedule, steps: int) -> None:
        super().__init__()
        self.steps = steps
        if schedule == "linear":
            betas = torch.linspace(0.1 / steps, 20 / steps, steps, dtype=torch.float64)
        else:
            angles = (torch.linspace(0, 1, steps + 1, dtype=torch.float64) + 0.008) / 1.008 * (math.pi / 2)
            level = angles.cos().square()
            betas = 1 - level[1:] / level[:-1]
        betas = betas.clamp(max=0.999)
        kept = torch.cat([betas.new_ones(1), (1 - betas).cumprod(0)])
        left = 1 - kept
        self.kept: list[float] = kept.tolist()
        self.betas: list[float] = betas.tolist()
        self.register_buffer("shares", torch.stack([kept.sqrt(), left.sqrt()]).float(), persistent=False)
        self.register_buffer("slips", (betas / ((1 - betas) * left[1:])).float(), persistent=False)
        self.shares: Tensor
        self.slips: Tensor
        ratio = left[1:-1] / left[2:]  # of the variance of q(x_{t-1} | x_t, x_0) to beta_t, from t = 2 on
        self.fixed = float((ratio - 1 - ratio.log()).sum() + math.log(2 * math.pi * self.betas[0])) / 2

    def at(
        self, t: Int[Tensor, " N"], x: Float[Tensor, "N ..."], noise: Float[Tensor, "N ..."]
    ) -> Float[Tensor, "N ..."]:
        """x_t of rows.

        Args:
            t: of each row its step, 0 to T.
            x: rows.
            noise: as many, standard normal.
        """
        data, rest = self.shares[:, t].view(2, -1, *(1,) * (x.dim() - 1))
        return torch.addcmul(data * x, rest, noise)

    def carried(self, start: int, end: int) -> tuple[float, float]:
        """What of a row and of its noise is in the row that is made of the same two at another step.

        Args:
            start: the step that it is at.
            end: the step that it is taken to.
        """
        a, b = self.kept[start], self.kept[end]
        whole = math.sqrt(b / a)
        return whole, math.sqrt(1 - b) - whole * math.sqrt(1 - a)

    def prior(self, x: Float[Tensor, "N ..."]) -> Float[Tensor, " N"]:
        """What it costs a row that x_T is taken to be standard normal, in nats: KL(q(x_T | x_0) || N(0, 1))."""
        last = self.kept[-1]
        return (last * x.flatten(1).square().sum(1) - x[0].numel() * (last + math.log1p(-last))) / 2
