"""Agents that act by a distribution over actions, and what values beside it they keep."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from danlu.acting import Agent, Choice, Spaces
from danlu.parts.distributions import family_of
from danlu.parts.mlp import Networks
from danlu.parts.network import MLP
from danlu.random import fold

POLICY_GAIN = 0.01
"""What a policy's last layer is scaled by at the start, so that it hardly prefers one action."""


@dataclass(frozen=True)
class Opinion:
    """What an agent says of some observations and actions, with a gradient.

    Attributes:
        log_prob: the logarithm of each action's probability or density, ``[B]``.
        entropy: of the policy at each observation, in nats, ``[B]``.
        values: what it expects to come of each observation, ``[B]``.
    """

    log_prob: Float[Tensor, " B"]
    entropy: Float[Tensor, " B"]
    values: Float[Tensor, " B"]


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
        outputs, *values, own = self.networks(x)
        log_prob = self.family.log_prob(outputs, own, actions)
        value = values[0].squeeze(1) if self.valued else torch.zeros_like(log_prob)
        return Opinion(log_prob, self.family.entropy(outputs, own), value)


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
        log_prob, entropy = self.family.log_prob(outputs, own, actions), self.family.entropy(outputs, own)
        return Opinion(log_prob, entropy, self.critic(x)[0].squeeze(1))
