"""Recipes of what learns from acting: the same six nouns."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, SerializeAsAny, model_validator

from danlu.acting import ActingMethod
from danlu.config import Config, Kind
from danlu.engine.optimizer import AdamW, OptimizerConfig
from danlu.recipe import Running
from danlu.registry import name_of
from danlu.world.config import WorldConfig


class ActingRun(Running):
    """How, where and how long an agent learns."""

    @property
    def compile(self) -> bool:
        """Networks of agents are too small to be worth a compiler's time."""
        return False

    @property
    def precision(self) -> Literal["fp32"]:
        """Of activations and products."""
        return "fp32"


class ActingRecipe(Config):
    """A run of an agent."""

    model: SerializeAsAny[Annotated[Config | None, Kind("network")]] = None
    """The network; null where the method keeps what it learned in a table."""
    method: SerializeAsAny[Annotated[ActingMethod, Kind("method")]]
    """How it learns."""
    data: WorldConfig = Field(default_factory=WorldConfig)
    """What it acts in."""
    optimizer: SerializeAsAny[Annotated[OptimizerConfig, Kind("optimizer")]] = Field(default_factory=AdamW)
    """How gradients move weights, where the method has any."""
    run: ActingRun = Field(default_factory=ActingRun)
    """How, where and how long."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.run.steps is None and self.data.env_steps is None:
            raise ValueError("a run is so many turns or so many steps in its world: set run.steps or data.env_steps")
        name, start, steps = name_of(type(self.method)), getattr(self.method, "start", 0), self.data.env_steps
        if steps is not None and start > steps:
            raise ValueError(f"{name} learns from step {start} on (method.start), and data.env_steps is {steps}")
        if self.method.goal != "approximation" and self.data.env is None:
            raise ValueError(f"{name} acts, and no world is named: set data.env, gridworld say")
        if self.method.level != "network" and self.model is not None:
            raise ValueError(f"{name} has no network: leave model out")
        return self

    @property
    def adapter(self) -> None:
        """Agents wear none."""
        return None

    @property
    def alone(self) -> ActingRecipe:
        """The same for one process, which it is for."""
        return self
