"""Temporal-difference prediction with a network: the values of a policy that chooses evenly.

    loss = mean[ (r_t + gamma V(s'_t) - V(s_t))^2 ]

The target stands without a gradient (a semi-gradient). The fixed point is that of TD(0) where the network can say it.

References:
    Sutton, 1988, "Learning to predict by the methods of temporal differences", https://doi.org/10.1007/BF00115009
    Tesauro, 1995, "Temporal difference learning and TD-Gammon", https://doi.org/10.1145/203330.203343
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from gymnasium.spaces import Box
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from danlu.acting import Agent, Choice, Discounting, Experience, Goal, Steps, Turn
from danlu.config import Config
from danlu.method.descent import descend
from danlu.parts.chance import even_actions, require_bounds
from danlu.parts.mlp import Networks
from danlu.parts.network import MLP, mlp_of
from danlu.random import fold
from danlu.registry import export
from danlu.spaces import Spaces


class Predictor(Agent):
    """What chooses evenly, and says what will come of that.

    Args:
        spaces: of the environments.
        network: what says it.
        seed: weights follow from it.
    """

    def __init__(self, spaces: Spaces, network: MLP, seed: int) -> None:
        super().__init__(spaces)
        self.critic = Networks(spaces.features, (1,), network, seed=fold(seed, "critic"))

    def act(self, observations: Tensor, chance: torch.Generator | None) -> Choice:
        """See `Agent`; it has no best action, so without chance it takes the same each time."""
        chance = chance or torch.Generator().manual_seed(0)
        return Choice(even_actions(self.spaces.action, len(observations), chance))

    def values(self, observations: Tensor) -> Float[Tensor, " N"]:
        """See `Agent`."""
        return torch.from_numpy(self.critic.answer(0, self.spaces.vector(observations).numpy())[:, 0])


@export("method", "td_neural", source="Sutton, 1988, https://doi.org/10.1007/BF00115009")
class TDNeural(Discounting):
    """TD(0) prediction with a network: what comes of choosing evenly, from one step to the next."""

    mechanism: ClassVar[str] = "temporal difference"
    goal: ClassVar[Goal] = "prediction"

    num_steps: int = Field(32, ge=1)
    """Steps of every environment that an update is made of."""

    def agent(self, spaces: Spaces, network: Config | None, seed: int) -> Predictor:
        """See `ActingMethod`."""
        return Predictor(spaces, mlp_of(network, MLP()), seed)

    def check(self, spaces: Spaces) -> None:
        """See `ActingMethod`; numbers must have bounds, within which it chooses."""
        super().check(spaces)
        if isinstance(spaces.action, Box):
            require_bounds(spaces.action, type(self).__name__)

    def learn(self, agent: Agent, experience: Experience, turn: Turn) -> Mapping[str, float | Tensor]:
        """One update."""
        assert isinstance(agent, Predictor)
        loss = self.loss(agent, experience.rollout(agent, self.num_steps))
        descend(turn, loss, [agent.critic.theta])
        return {"loss": loss.detach()}

    def loss(self, agent: Predictor, steps: Steps) -> Tensor:
        """The mean squared temporal-difference error."""
        values = agent.critic(agent.spaces.vector(steps.observations.flatten(0, 1)))[0].squeeze(1)
        with torch.no_grad():
            after = agent.critic(agent.spaces.vector(steps.following.flatten(0, 1)))[0].squeeze(1)
            target = steps.rewards.flatten() + self.gamma * after * ~steps.terminated.flatten()
        return (target - values).square().mean()
