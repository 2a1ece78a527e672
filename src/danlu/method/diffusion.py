"""Diffusion: data become noise in many small steps, and a network learns which noise is in a row.

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) e,    loss = mean over a row's D numbers of [e_theta(x_t, t) - e]^2

(DDPM's simple loss, t even in 1 to T.) Rows are made by DDIM without chance: with S of the T steps,

    x_s = sqrt(abar_s) (x_t - sqrt(1 - abar_t) e_theta) / sqrt(abar_t) + sqrt(1 - abar_s) e_theta,    s < t

which is also taken from data to noise, e_theta being asked at the step that one comes from: the more steps, the nearer
that is to the way back. Of the log-density there is a bound, with q's steps and x_{t-1} ~ N(mean_theta, beta_t):

    log p(x_0) >= - KL(q(x_T | x_0) || N)
                  - sum_{t > 1} E KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) + E log p(x_0 | x_1)

References:
    Ho, Jain and Abbeel, 2020, "Denoising diffusion probabilistic models", https://arxiv.org/abs/2006.11239
    Song, Meng and Ermon, 2021, "Denoising diffusion implicit models", https://arxiv.org/abs/2010.02502
    Nichol and Dhariwal, 2021, "Improved denoising diffusion probabilistic models", https://arxiv.org/abs/2102.09672
"""

from __future__ import annotations

from itertools import pairwise
from typing import Self

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import mse_loss

from danlu.config import Config
from danlu.contracts import Outcome
from danlu.density import Density, Rows, Space
from danlu.method.continuous import Guided
from danlu.parts.continuous import Timed
from danlu.parts.network import MLP
from danlu.parts.noising import Noising, Schedule
from danlu.parts.times import geometric, noise_and_shares
from danlu.parts.trace import keys_of
from danlu.random import fold, place_key
from danlu.registry import export

_DEFAULT = MLP(hidden=(64, 64), activation="silu", initial="uniform")
_CHANCE = place_key("diffusion.chance")
_STAGES = 31
_ROWS = 1 << 13


class DenoisedRows(Density):
    """Noise that a network takes out of rows step by step.

    Args:
        space: what a row is.
        field: the network, told which share of the steps has been taken; it gives the noise in a row.
        noising: the steps.
        sampling_steps: S.
        bound_steps: how many steps the bound is estimated with; None takes all.
        guidance: see `Timed.guided`; the bound is that of guidance 1.
    """

    likelihood = "bound"

    def __init__(
        self,
        space: Space,
        field: Timed,
        noising: Noising,
        *,
        sampling_steps: int,
        bound_steps: int | None,
        guidance: float,
    ) -> None:
        super().__init__(space)
        self.field, self.noising, self.guidance = field, noising, guidance
        self.bound_steps = bound_steps or noising.steps
        self._grid = [i * noising.steps // sampling_steps for i in range(sampling_steps + 1)]

    def decode(self, z: Float[Tensor, "N ..."], context: Tensor | None = None) -> Float[Tensor, "N ..."]:
        """See `Density`: DDIM."""
        return self._along(z, context, self._grid[::-1])

    def encode(self, x: Float[Tensor, "N ..."], context: Tensor | None = None) -> Float[Tensor, "N ..."]:
        """See `Density`: DDIM backwards."""
        return self._along(x, context, self._grid)

    def path(self, z: Float[Tensor, "N ..."], context: Tensor | None = None) -> list[Tensor]:
        """See `Density`."""
        grid = self._grid[::-1]
        num = len(grid) - 1
        ends = [i * num // min(num, _STAGES - 1) for i in range(min(num, _STAGES - 1) + 1)]
        stages = [z]
        for a, b in pairwise(ends):
            stages.append(self._along(stages[-1], context, grid[a : b + 1]))
        self.evaluations = num
        return stages

    def log_prob(
        self,
        x: Float[Tensor, "N ..."],
        context: Tensor | None = None,
        keys: Int[Tensor, " N"] | None = None,
    ) -> Float[Tensor, " N"]:
        """See `Density`: the bound, with a draw of noise a step.

        Args:
            x: rows.
            context: what they are conditioned on.
            keys: what the noise is a function of; None takes the rows themselves.
        """
        keys = keys_of(x) if keys is None else keys
        noising, num, rows, size = self.noising, self.bound_steps, len(x), self.space.size
        cost = x.new_zeros(rows)
        together = max(1, _ROWS // rows)
        for start in range(0, num, together):
            strata = torch.arange(start, min(start + together, num), device=x.device)
            wide = len(strata)
            places = torch.tensor([_place(i) for i in strata.tolist()], dtype=torch.int32, device=x.device)
            mixed = (keys[None] ^ places[:, None]).flatten()
            noise, (u,) = noise_and_shares(mixed, _CHANCE, size, 1)
            noise = noise.view(wide * rows, *x.shape[1:]).to(x.dtype)
            if num == noising.steps:
                t = strata.repeat_interleave(rows) + 1
            else:  # one step out of each stretch of T / K
                share = (strata.repeat_interleave(rows) + u) / num
                t = (share * noising.steps).long().clamp(max=noising.steps - 1) + 1
            told = None if context is None else context.repeat(wide, 1)
            said = self.noise_in(t, noising.at(t, x.repeat(wide, *(1,) * (x.dim() - 1)), noise), told)
            error = (said - noise).flatten(1).square().sum(1)
            cost += (noising.slips[t - 1] * error).view(wide, rows).sum(0)
        self.evaluations = num
        return -(cost * (noising.steps / num / 2) + noising.prior(x) + size * noising.fixed)

    def noise_in(
        self, t: Int[Tensor, " N"], x: Float[Tensor, "N ..."], context: Tensor | None
    ) -> Float[Tensor, "N ..."]:
        """The noise in rows that each are at their own step."""
        return self.field(t.to(x.dtype) / self.noising.steps, x, context)

    def _along(self, x: Tensor, context: Tensor | None, grid: list[int]) -> Tensor:
        for start, end in pairwise(grid):
            whole, part = self.noising.carried(start, end)
            noise = self.field.guided(max(start, 1) / self.noising.steps, x, context, self.guidance)
            x = torch.add(x * whole, noise, alpha=part)
        self.evaluations = len(grid) - 1
        return x


@export("method", "diffusion", source="Ho, Jain and Abbeel, 2020, https://arxiv.org/abs/2006.11239")
class Diffusion(Guided):
    """Diffusion: a network learns which noise is in a row, and takes it out step by step."""

    mechanism = "denoising"
    later = Guided.later | {"sampling_steps", "bound_steps"}
    one_step = False
    takes_images = True

    schedule: Schedule = "linear"
    """How the noise grows from step to step: `linear`; or by a `cosine`, slower at both ends."""
    num_steps: int = Field(1000, ge=2)
    """T: in how many steps data become noise."""
    sampling_steps: int = Field(50, ge=1)
    """S: in how many of these rows are made, and taken back to their noise; each costs one evaluation."""
    bound_steps: int | None = Field(None, ge=1)
    """How many steps, spread over all, the bound of the log-density is estimated with; null takes all of them."""
    frequencies: int = Field(8, ge=1)
    """The network is told sin and cos of so many frequencies of t / T, whose periods shrink from 4 to 0.02."""

    @model_validator(mode="after")
    def _steps_there_are(self) -> Self:
        for name, num in (("sampling_steps", self.sampling_steps), ("bound_steps", self.bound_steps)):
            if num is not None and num > self.num_steps:
                raise ValueError(f"{name} is {num}, more than the {self.num_steps} steps there are: raise num_steps")
        return self

    @property
    def terms(self) -> tuple[str, ...]:
        """See `DensityMethod`: the noise's squared error."""
        return ("noise",)

    def density(self, space: Space, network: Config | None, seed: int) -> DenoisedRows:
        """See `DensityMethod`."""
        field = Timed(space, network or _DEFAULT, geometric(self.frequencies, 4.0, 0.02), seed)
        return DenoisedRows(
            space,
            field,
            Noising(self.schedule, self.num_steps),
            sampling_steps=self.sampling_steps,
            bound_steps=self.bound_steps,
            guidance=self.guidance,
        )

    def fit(self, density: Density, rows: Rows) -> Outcome:
        """See `DensityMethod`."""
        assert isinstance(density, DenoisedRows)
        space, noising = density.space, density.noising
        noise, (u, told) = noise_and_shares(rows.keys, _CHANCE, space.size, 2)
        noise = noise.view(rows.x.shape)
        t = (u * noising.steps).long().clamp_(max=noising.steps - 1) + 1
        known = told >= self.condition_dropout if self.condition_dropout else None
        said = density.noise_in(t, noising.at(t, rows.x, noise), space.vector(rows.condition, known))
        return Outcome({"noise": mse_loss(said, noise, reduction="sum") / space.size}, {})


def _place(stratum: int) -> int:
    """A key for one of the bound's steps, an int32."""
    return (fold("diffusion.bound", stratum) >> 32) - 2**31
