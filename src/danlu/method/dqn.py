"""Deep Q-network: action values by a network, from steps drawn out of all that were taken.

    y = r + gamma max_a' Q_target(s', a'),   loss = mean[ huber(Q(s, a) - y) ]

The target network is the network as it was at the last of every `target_every` updates. With `double` the network
chooses a' and the target says its value, so that the maximum over errors does not pass for value.

References:
    Mnih et al., 2015, "Human-level control through deep reinforcement learning", https://doi.org/10.1038/nature14236
    van Hasselt, Guez and Silver, 2015, "Deep reinforcement learning with double Q-learning",
    https://arxiv.org/abs/1509.06461
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from danlu.acting import Agent, Choice, Experience, Steps, Turn
from danlu.config import Config
from danlu.method.descent import descend
from danlu.method.exploring import Exploring
from danlu.method.replaying import Replaying
from danlu.parts.chance import even_actions
from danlu.parts.mlp import Networks
from danlu.parts.network import MLP, mlp_of
from danlu.random import fold
from danlu.registry import export
from danlu.spaces import Spaces


class QAgent(Agent):
    """Action values of a choice, and as they were some time ago.

    Args:
        spaces: of the environments.
        network: what says them.
        seed: weights follow from it.

    Attributes:
        epsilon: the share of actions that it chooses evenly when it explores.
        updates: how many it has had.
    """

    def __init__(self, spaces: Spaces, network: MLP, seed: int) -> None:
        super().__init__(spaces)
        num, key = spaces.num_actions, fold(seed, "q")
        assert num is not None, "actions are a choice"
        self.start = spaces.first_action
        self.q = Networks(spaces.features, (num,), network, seed=key)
        self.target = Networks(spaces.features, (num,), network, seed=key).requires_grad_(False)
        self.epsilon = 1.0
        self.updates: Tensor
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def act(self, observations: Tensor, chance: torch.Generator | None) -> Choice:
        """See `Agent`."""
        best = self.q.answer(0, self.spaces.vector(observations).numpy()).argmax(1)
        actions = torch.from_numpy(best + self.start if self.start else best)
        if chance is not None:
            astray = torch.rand(len(actions), generator=chance) < self.epsilon
            actions = torch.where(astray, even_actions(self.spaces.action, len(actions), chance), actions)
        return Choice(actions)

    def values(self, observations: Tensor) -> Float[Tensor, " N"]:
        """See `Agent`."""
        return torch.from_numpy(np.max(self.q.answer(0, self.spaces.vector(observations).numpy()), 1))


@export("method", "dqn", source="Mnih et al., 2015, https://doi.org/10.1038/nature14236")
class DQN(Replaying):
    """Deep Q-network: Q-learning with a network, a memory of steps and a target that stands still."""

    mechanism: ClassVar[str] = "Q-learning"
    acts_in: ClassVar[frozenset[str]] = frozenset({"discrete"})

    num_steps: int = Field(4, ge=1)
    """Steps of every environment that a turn takes."""
    updates: int = Field(1, ge=1)
    """Updates in a turn."""
    target_every: int = Field(2500, ge=1)
    """Updates after which the target becomes the network."""
    double: bool = False
    """Whether the network chooses the action whose value the target says."""
    epsilon: Exploring = Exploring()
    """The share of actions drawn from all alike."""

    def agent(self, spaces: Spaces, network: Config | None, seed: int) -> QAgent:
        """See `ActingMethod`."""
        return QAgent(spaces, mlp_of(network, MLP(activation="relu", initial="uniform")), seed)

    def learn(self, agent: Agent, experience: Experience, turn: Turn) -> Mapping[str, float | Tensor]:
        """Some steps, and some updates; what is recorded is of the last."""
        assert isinstance(agent, QAgent)
        agent.epsilon = self.epsilon.at(turn.share)
        replay, chance = experience.replay, turn.numpy_chance()
        experience.rollout(agent, self.num_steps)
        while len(replay) < self.start:
            experience.rollout(agent, self.num_steps)
        loss = torch.zeros(())
        for _ in range(self.updates):
            if int(agent.updates) % self.target_every == 0:
                agent.target.load_state_dict(agent.q.state_dict())
            loss = self.loss(agent, replay.sample(self.batch_size, chance))
            descend(turn, loss, [agent.q.theta])
            agent.updates += 1
        return {"loss": loss.detach(), "epsilon": agent.epsilon}

    def loss(self, agent: QAgent, steps: Steps) -> Tensor:
        """The mean Huber loss of the temporal-difference errors."""
        q = agent.q(agent.spaces.vector(steps.observations.flatten(0, 1)))[0]
        chosen = q.gather(1, (steps.actions.flatten() - agent.start)[:, None]).squeeze(1)
        return F.smooth_l1_loss(chosen, self.targets(agent, steps))

    @torch.no_grad()
    def targets(self, agent: QAgent, steps: Steps) -> Float[Tensor, " B"]:
        """The target y of each step; one whose episode was only cut goes on in what it led to."""
        following = agent.spaces.vector(steps.following.flatten(0, 1))
        after = agent.target(following)[0]
        if self.double:
            after = after.gather(1, agent.q(following)[0].argmax(1, keepdim=True)).squeeze(1)
        else:
            after = after.amax(1)
        return steps.rewards.flatten() + self.gamma * after * ~steps.terminated.flatten()
