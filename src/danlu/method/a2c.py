"""Advantage actor-critic: the policy follows the advantages that its critic estimates, and the critic the returns.

    loss = mean[ - A_t log pi(a_t | s_t) + c_v (R_t - V(s_t))^2 - c_e H(pi(. | s_t)) ]

The advantages A_t are those of `danlu.method.advantages`, R_t = A_t + V(s_t), both as they were before the update, and
an update is made of the next few steps of every environment. With `gae_lambda` 1 A_t is the n-step return less the
value, with 0 the temporal-difference error.

References:
    Mnih et al., 2016, "Asynchronous methods for deep reinforcement learning" (of which this is the synchronous form),
    https://arxiv.org/abs/1602.01783
    Sutton and Barto, 2018, "Reinforcement learning: an introduction", 13.5, http://incompleteideas.net/book/the-book.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from danlu.acting import Agent, Discounting, Experience, Turn
from danlu.config import Config
from danlu.method.advantages import OnPolicy
from danlu.method.descent import step
from danlu.parts.actor_critic import ActorCritic, Opinion
from danlu.parts.network import MLP, mlp_of
from danlu.registry import export
from danlu.spaces import Spaces


@export("method", "a2c", source="Mnih et al., 2016, https://arxiv.org/abs/1602.01783")
class A2C(Discounting):
    """Advantage actor-critic: the policy gradient weighed by how much better than expected it went."""

    mechanism: ClassVar[str] = "actor-critic"

    num_steps: int = Field(5, ge=1)
    """Steps of every environment that an update is made of."""
    updates: int = Field(1, ge=1)
    """Updates in a turn, each of steps of its own: for turns that are worth recording."""
    gae_lambda: float = Field(1.0, ge=0, le=1)
    """How much of what lies further off is believed rather than the critic: 1 is the n-step return, 0 one step."""
    value_weight: float = Field(0.5, ge=0)
    """Weight of the critic's squared error."""
    entropy_weight: float = Field(0.0, ge=0)
    """Weight of the policy's entropy, which keeps it exploring."""
    standardise: bool = False
    """Give the advantages of an update mean 0 and deviation 1."""

    def agent(self, spaces: Spaces, network: Config | None, seed: int) -> ActorCritic:
        """See `ActingMethod`."""
        return ActorCritic(spaces, mlp_of(network, MLP()), seed)

    def learn(self, agent: Agent, experience: Experience, turn: Turn) -> Mapping[str, float | Tensor]:
        """The updates of a turn; what is recorded is of the last."""
        assert isinstance(agent, ActorCritic)
        for _ in range(self.updates - 1):
            self._update(agent, experience, turn)
        said, batch = self._update(agent, experience, turn)
        loss, metrics = self.loss(said, batch)
        return {"loss": loss, **metrics}

    def _update(self, agent: ActorCritic, experience: Experience, turn: Turn) -> tuple[Opinion, OnPolicy]:
        """Take steps and learn from them; the steps, and what the agent thought of them before."""
        steps = experience.rollout(agent, self.num_steps)
        x = agent.spaces.vector(steps.observations.flatten(0, 1))
        passed = agent.networks.passed(x)
        said = agent.opinion_of(passed.said, steps.actions.flatten(0, 1))
        batch = OnPolicy.of(agent, steps, x, said, gamma=self.gamma, lam=self.gae_lambda)
        batch = batch.standardised if self.standardise else batch
        agent.networks.pull(passed, self.slope(said, batch))
        step(turn, [agent.networks.theta])
        return said, batch

    def loss(self, said: Opinion, batch: OnPolicy) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and what is recorded beside it.

        Args:
            said: what the agent thinks of the steps.
            batch: the steps.
        """
        policy_loss = -(batch.advantages * said.log_prob()).mean()
        value_loss, entropy = (batch.returns - said.values).square().mean(), said.entropy()
        loss = policy_loss + self.value_weight * value_loss - self.entropy_weight * entropy
        return loss, {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}

    @torch.no_grad()
    def slope(self, said: Opinion, batch: OnPolicy) -> tuple[Tensor, Tensor, Tensor]:
        """The loss's gradient by what the networks say: the policy's outputs, the values, and the own numbers."""
        num = len(batch)
        pull = batch.advantages * (-1 / num)
        outputs, own = said.family.slope(said.outputs, said.own, said.actions, pull, -self.entropy_weight / num)
        values = (said.values - batch.returns).mul_(2 * self.value_weight / num)
        return outputs, values[:, None], own
