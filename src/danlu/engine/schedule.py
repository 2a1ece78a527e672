"""Learning-rate schedules: what the rate is multiplied by, as a function of how much has been consumed."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Self

from pydantic import Field, model_validator

from danlu.config import Config
from danlu.registry import export


class Schedule(Config):
    """A factor in [0, 1] for every point of a run."""

    warmup: float = Field(0.02, ge=0, lt=1)
    """Share of the run over which the rate rises from 0, in a straight line."""

    @abstractmethod
    def decay(self, progress: float) -> float:
        """The factor after the warm-up, `progress` being the share of the run consumed, in [0, 1]."""

    def factor(self, progress: float) -> float:
        """The factor at a share of the run; of an update, the share that is consumed when it ends."""
        return progress / self.warmup if progress < self.warmup else self.decay(min(progress, 1.0))


@export("schedule", "constant", source="Robbins and Monro, 1951, https://doi.org/10.1214/aoms/1177729586")
class Constant(Schedule):
    """The full rate to the end."""

    def decay(self, progress: float) -> float:
        """Always 1."""
        return 1.0


@export("schedule", "cosine", source="Loshchilov and Hutter, 2016, https://arxiv.org/abs/1608.03983")
class Cosine(Schedule):
    """Down along half a cosine."""

    floor: float = Field(0.1, ge=0, le=1)
    """What is left of the rate at the end."""

    def decay(self, progress: float) -> float:
        """Floor + (1 - floor) (1 + cos(pi s)) / 2, with s the share of the time after the warm-up."""
        after = (progress - self.warmup) / (1 - self.warmup)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * after))


@export("schedule", "wsd", source="Hu et al., 2024, MiniCPM, https://arxiv.org/abs/2404.06395")
class WarmupStableDecay(Schedule):
    """The full rate, then down at the end: a run can be extended from before its decay."""

    cooldown: float = Field(0.2, gt=0, le=1)
    """Share of the run over which the rate falls, at its end."""
    floor: float = Field(0.0, ge=0, le=1)
    """What is left of the rate at the end."""

    @model_validator(mode="after")
    def _in_turn(self) -> Self:
        if self.warmup + self.cooldown > 1:
            raise ValueError(f"warmup ({self.warmup}) and cooldown ({self.cooldown}) are more than the run together")
        return self

    def decay(self, progress: float) -> float:
        """1, then in a straight line to the floor."""
        left = (1 - progress) / self.cooldown
        return self.floor + (1 - self.floor) * min(1.0, left)
