"""Off-policy actor-critic: a policy is improved by steps that another took, weighed by how it would have taken them.

    rho_t = pi(a_t | s_t) / beta(a_t | s_t),   delta_t = r_t + gamma V(s'_t) - V(s_t)
    loss = mean[ - rho_t delta_t log pi(a_t | s_t) - c_e H(pi(. | s_t)) + c_v rho_t delta_t^2 ]

The weights and errors are numbers, without a gradient but that of V(s_t) in the last term. The behaviour beta is the
policy at the time, mixed with actions chosen evenly; of numbers, with a wider deviation. It says how likely each of its
actions was, so a turn's steps serve several updates while the policy goes away from it.

References:
    Degris, White and Sutton, 2012, "Off-policy actor-critic", https://arxiv.org/abs/1205.4839
    Espeholt et al., 2018, "IMPALA" (weights are bounded), https://arxiv.org/abs/1802.01561
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from danlu.acting import Agent, Choice, Discounting, Experience, Steps, Turn
from danlu.config import Config
from danlu.method.descent import descend
from danlu.parts.actor_critic import ActorCritic
from danlu.parts.distributions import Categorical
from danlu.parts.network import MLP, mlp_of
from danlu.registry import export
from danlu.spaces import Spaces


class OffPolicyAgent(ActorCritic):
    """An actor-critic that explores by another policy than its own.

    Args:
        spaces: of the environments.
        network: what both networks are.
        seed: weights follow from it.
        epsilon: how far its behaviour is from its policy.
    """

    def __init__(self, spaces: Spaces, network: MLP, seed: int, epsilon: float) -> None:
        super().__init__(spaces, network, seed)
        self.epsilon = epsilon

    def behaviour(self, outputs: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the distribution that it explores by."""
        if not isinstance(self.family, Categorical):
            return outputs, own + np.float32(np.log1p(self.epsilon))
        p = np.exp(outputs - outputs.max(1, keepdims=True))
        p *= (1 - self.epsilon) / p.sum(1, keepdims=True)
        return np.log(p + self.epsilon / self.family.outputs), own

    def act(self, observations: Tensor, chance: torch.Generator | None) -> Choice:
        """See `Agent`; where it explores it says "log_prob", that of its behaviour."""
        numbers = self.outputs(self.spaces.vector(observations).numpy())
        if chance is None:
            return Choice(torch.from_numpy(self.family.draw(*numbers, None)[0]))
        actions, log_prob = self.family.draw(*self.behaviour(*numbers), chance)
        return Choice(torch.from_numpy(actions), {"log_prob": torch.from_numpy(log_prob)})


@export("method", "off_policy_ac", source="Degris, White and Sutton, 2012, https://arxiv.org/abs/1205.4839")
class OffPolicyAC(Discounting):
    """Off-policy actor-critic: one policy explores, another learns from it by importance weights."""

    mechanism: ClassVar[str] = "actor-critic"

    num_steps: int = Field(32, ge=1)
    """Steps of every environment that a turn is made of."""
    updates: int = Field(4, ge=1)
    """Updates that are made of them."""
    epsilon: float = Field(0.2, ge=0, le=1)
    """The share of actions that the behaviour chooses evenly; of numbers, how much wider it is than the policy."""
    max_weight: float = Field(5.0, gt=0)
    """The most that one step weighs."""
    value_weight: float = Field(0.5, ge=0)
    """Weight of the critic's squared error."""
    entropy_weight: float = Field(0.01, ge=0)
    """Weight of the policy's entropy."""

    def agent(self, spaces: Spaces, network: Config | None, seed: int) -> OffPolicyAgent:
        """See `ActingMethod`."""
        return OffPolicyAgent(spaces, mlp_of(network, MLP()), seed, self.epsilon)

    def learn(self, agent: Agent, experience: Experience, turn: Turn) -> Mapping[str, float | Tensor]:
        """A turn's steps, and the updates made of them; what is recorded is of the last."""
        assert isinstance(agent, OffPolicyAgent)
        steps = experience.rollout(agent, self.num_steps)
        x = agent.spaces.vector(steps.observations.flatten(0, 1))
        following = agent.spaces.vector(steps.following.flatten(0, 1))
        metrics: dict[str, Tensor] = {}
        for _ in range(self.updates):
            loss, metrics = self.loss(agent, steps, x, following)
            descend(turn, loss, [agent.networks.theta])
        return metrics

    def loss(
        self, agent: OffPolicyAgent, steps: Steps, x: Float[Tensor, "B F"], following: Float[Tensor, "B F"]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and what is recorded of it.

        Args:
            agent: which learns.
            steps: of what.
            x: their observations as vectors.
            following: what they led to, as vectors.
        """
        said = agent.opinion(x, steps.actions.flatten(0, 1))
        log_prob = said.log_prob()
        with torch.no_grad():
            after = agent.networks(following)[1].squeeze(1) * ~steps.terminated.flatten()
            target = steps.rewards.flatten() + self.gamma * after
            delta = target - said.values
            rho = (log_prob - steps.said["log_prob"].flatten()).exp().clamp(max=self.max_weight)
        policy_loss = -(rho * delta * log_prob).mean()
        value_loss = (rho * (target - said.values).square()).mean()
        entropy = said.entropy()
        loss = policy_loss + self.value_weight * value_loss - self.entropy_weight * entropy
        metrics = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy, "weight": rho.mean()}
        return loss, {name: value.detach() for name, value in (metrics | {"loss": loss}).items()}
