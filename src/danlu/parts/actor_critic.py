"""Agents that act by a distribution over actions, and what values beside it they keep."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from danlu.acting import Agent, Choice
from danlu.parts.distributions import Family, family_of
from danlu.parts.mlp import Networks
from danlu.parts.network import MLP
from danlu.random import fold
from danlu.spaces import Spaces

POLICY_GAIN = 0.01
"""What a policy's last layer is scaled by at the start, so that it hardly prefers one action."""


@dataclass(frozen=True, eq=False)
class Opinion:
    """What an agent says of some observations and actions, with a gradient.

    Attributes:
        family: of its policy.
        outputs: the policy's numbers at each observation, ``[B, outputs]``.
        own: those alike for all, ``[own]``.
        actions: ``[B, ...]``.
        values: what it expects to come of each observation, ``[B]``; zero where it has no values.
    """

    family: Family
    outputs: Float[Tensor, "B O"]
    own: Tensor
    actions: Tensor
    values: Float[Tensor, " B"]

    def log_prob(self) -> Float[Tensor, " B"]:
        """The logarithm of each action's probability or density."""
        return self.family.log_prob(self.outputs, self.own, self.actions)

    def entropy(self) -> Float[Tensor, ""]:
        """Of the policy, in nats, the mean over the observations."""
        return self.family.entropy(self.outputs, self.own).mean()


class StochasticAgent(Agent):
    """What acts by drawing from a distribution.

    Args:
        spaces: of the environments.
    """

    def __init__(self, spaces: Spaces) -> None:
        super().__init__(spaces)
        self.family = family_of(spaces.action)

    @abstractmethod
    def outputs(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The distribution's numbers at some observations ``[N, F]``: the network's ``[N, outputs]``, and ``[own]``."""

    def act(self, observations: Tensor, chance: torch.Generator | None) -> Choice:
        """See `Agent`: an action drawn, or the likeliest."""
        actions, _ = self.family.draw(*self.outputs(self.spaces.vector(observations).numpy()), chance)
        return Choice(torch.from_numpy(actions))


class ActorCritic(StochasticAgent):
    """A policy and, beside it, values, each by a network of its own, which are computed as one.

    Args:
        spaces: of the environments.
        network: what both networks are.
        seed: weights follow from it.
        valued: whether there are values.
    """

    def __init__(self, spaces: Spaces, network: MLP, seed: int, *, valued: bool = True) -> None:
        super().__init__(spaces)
        family = self.family
        outputs, gains = ((family.outputs, 1), (POLICY_GAIN, 1.0)) if valued else ((family.outputs,), (POLICY_GAIN,))
        key = fold(seed, "actor and critic")
        self.networks = Networks(spaces.features, outputs, network, seed=key, gains=gains, own=family.own)
        self.valued = valued

    def outputs(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `StochasticAgent`."""
        return self.networks.answer(0, x), self.networks.own

    def values(self, observations: Tensor) -> Float[Tensor, " N"] | None:
        """See `Agent`."""
        if not self.valued:
            return None
        return torch.from_numpy(self.networks.answer(1, self.spaces.vector(observations).numpy())[:, 0])

    def opinion(self, x: Float[Tensor, "B F"], actions: Tensor) -> Opinion:
        """What it thinks of observations, as vectors, and actions; values are zero where it has none."""
        return self.opinion_of(self.networks(x), actions)

    def opinion_of(self, said: Sequence[Tensor], actions: Tensor) -> Opinion:
        """The same of what its networks have said."""
        outputs, *values, own = said
        value = values[0].squeeze(1) if self.valued else outputs.new_zeros(len(outputs))
        return Opinion(self.family, outputs, own, actions, value)


class SeparateActorCritic(StochasticAgent):
    """A policy and values by two networks that are moved each in its own way.

    Args:
        spaces: of the environments.
        network: what both networks are.
        seed: weights follow from it.
    """

    def __init__(self, spaces: Spaces, network: MLP, seed: int) -> None:
        super().__init__(spaces)
        family, f = self.family, spaces.features
        key = fold(seed, "actor")
        self.actor = Networks(f, (family.outputs,), network, seed=key, gains=(POLICY_GAIN,), own=family.own)
        self.critic = Networks(f, (1,), network, seed=fold(seed, "critic"))

    def outputs(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `StochasticAgent`."""
        return self.actor.answer(0, x), self.actor.own

    def values(self, observations: Tensor) -> Float[Tensor, " N"]:
        """See `Agent`."""
        return torch.from_numpy(self.critic.answer(0, self.spaces.vector(observations).numpy())[:, 0])

    def opinion(self, x: Float[Tensor, "B F"], actions: Tensor) -> Opinion:
        """What it thinks of observations, as vectors, and actions."""
        outputs, own = self.actor(x)
        return Opinion(self.family, outputs, own, actions, self.critic(x)[0].squeeze(1))
