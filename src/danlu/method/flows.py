"""What normalising flows of vectors share: how many steps they have, and which networks steer them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import Field

from danlu.config import Config
from danlu.density import Space, options_of
from danlu.method.maximum_likelihood import MaximumLikelihood
from danlu.parts.flow import Flow
from danlu.parts.network import MLP
from danlu.parts.order import Mixing

DEFAULT = MLP(hidden=(64, 64), activation="relu", initial="uniform")
"""The network of a step, where a recipe names none."""


class FullyConnectedFlow(MaximumLikelihood, ABC):
    """A normalising flow whose steps are steered by fully connected networks."""

    least: ClassVar[int] = 2

    steps: int = Field(8, ge=2)
    """How many steps there are, each with a network of its own."""
    mixing: Mixing = "alternate"
    """What is done to the order of a row's numbers between steps: `alternate` lets parts change places; `shuffle` puts
    all in an order drawn once, from the seed."""

    @abstractmethod
    def flow(self, space: Space, network: MLP, seed: int) -> Flow:
        """The flow at its start, rows being such as it can learn."""

    def density(self, space: Space, network: Config | None, seed: int) -> Flow:
        """See `DensityMethod`."""
        self.check(space)
        return self.flow(space, options_of(network, DEFAULT, (MLP,)), seed)
