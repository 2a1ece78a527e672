"""What environments show and take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import Space
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from jaxtyping import Float
from torch import Tensor, nn


def in_words(space: Space[Any]) -> str:
    """A space on one line, for a sentence.

    Example:
        >>> in_words(Box(-1.0, np.array([1.0, 20.0], np.float32)))
        'Box(-1.0, [ 1. 20.], (2,), float32)'
    """
    return " ".join(str(space).split())


@dataclass(frozen=True)
class Spaces:
    """What one environment shows and takes.

    Attributes:
        observation: what it shows.
        action: what it takes.
    """

    observation: Space[Any]
    action: Space[Any]

    @staticmethod
    def none() -> Spaces:
        """What there is where nothing is acted in."""
        return Spaces(Discrete(1), Discrete(1))

    @property
    def num_states(self) -> int | None:
        """How many states a finite world has; None where it is not."""
        return int(self.observation.n) if isinstance(self.observation, Discrete) else None

    @property
    def first_state(self) -> int:
        """What the states of a finite world are counted from."""
        return _first(self.observation)

    @property
    def first_action(self) -> int:
        """What the actions there are to choose from are counted from."""
        return _first(self.action)

    @property
    def num_actions(self) -> int | None:
        """How many actions there are to choose from; None where they are numbers."""
        return int(self.action.n) if isinstance(self.action, Discrete) else None

    def possible(self, actions: np.ndarray) -> np.ndarray:
        """The nearest actions that there are, ``[N, ...]``: numbers are cut at the bounds of their space."""
        space = self.action
        return np.clip(actions, space.low, space.high) if isinstance(space, Box) else actions

    @property
    def features(self) -> int:
        """How many numbers `vector` makes of an observation."""
        space = self.observation
        if isinstance(space, Discrete):
            return int(space.n)
        if isinstance(space, MultiDiscrete):
            return int(np.sum(space.nvec))
        return int(np.prod(space.shape or ()))

    def vector(self, observations: Tensor) -> Float[Tensor, "*N F"]:
        """Observations as numbers that a network takes: of a choice a one-hot vector, of an array its elements."""
        space = self.observation
        if isinstance(space, Discrete):
            return nn.functional.one_hot(observations - int(space.start), int(space.n)).float()
        if isinstance(space, MultiDiscrete):
            from_zero = observations - torch.as_tensor(space.start, device=observations.device)
            each = [nn.functional.one_hot(from_zero[..., i], int(n)) for i, n in enumerate(space.nvec.flatten())]
            return torch.cat(each, -1).float()
        lead = observations.dim() - len(space.shape or ())
        return observations.flatten(lead).float() if observations.dim() > lead else observations.float()[..., None]


def _first(space: Space[Any]) -> int:
    return int(space.start) if isinstance(space, Discrete) else 0
