"""Recipes of densities: the same six nouns, where a distribution of rows is learned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SerializeAsAny

from danlu.config import Config, Kind
from danlu.data.arrays import ArrayConfig
from danlu.density import DensityMethod
from danlu.engine.optimizer import AdamW, OptimizerConfig
from danlu.recipe import Reading


class DensityRun(Reading):
    """How, where and how long a density is learned."""

    pack_rows: int = Field(16384, ge=1)
    """Rows that go through at once on a process, at most: a matter of memory, which changes no result."""
    compile: bool = False
    """Compile what a method marks: faster steps after a start-up; needs a C++ compiler on a CPU."""

    @property
    def precision(self) -> Literal["fp32"]:
        """Of activations and products: a log-determinant is a sum of many small numbers."""
        return "fp32"


class DensityRecipe(Config):
    """A run of a density."""

    model: SerializeAsAny[Annotated[Config | None, Kind("network")]] = None
    """The network; null takes the method's own."""
    method: SerializeAsAny[Annotated[DensityMethod, Kind("method")]]
    """How it learns."""
    data: ArrayConfig
    """What it learns from."""
    optimizer: SerializeAsAny[Annotated[OptimizerConfig, Kind("optimizer")]] = Field(default_factory=AdamW)
    """How gradients move weights."""
    run: DensityRun
    """How, where and how long."""

    @property
    def adapter(self) -> None:
        """Densities wear none."""
        return None

    @property
    def alone(self) -> DensityRecipe:
        """The same for one process."""
        return self
