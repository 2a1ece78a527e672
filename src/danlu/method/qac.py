"""Q actor-critic: the policy follows the action values that its critic learns from its own steps.

    loss = mean[ - (Q(s_t, a_t) - b(s_t)) log pi(a_t | s_t) - c_e H(pi(. | s_t)) + c_v delta_t^2 ]
    delta_t = r_t + gamma Q(s'_t, a'_t) - Q(s_t, a_t)

Q weighs the first term and stands in the target as it is, without a gradient; a' is the action that the policy takes
next (Sarsa). Of a choice the critic says all action values at once; of numbers it is given them. The baseline b changes
no expectation and takes away variance: what the policy expects of its choice, or the value of the likeliest numbers.

The critic learns faster than the actor (two time scales), as convergence asks.

References:
    Sutton et al., 1999, "Policy gradient methods for reinforcement learning with function approximation",
    https://papers.nips.cc/paper/1713-policy-gradient-methods-for-reinforcement-learning-with-function-approximation
    Konda and Tsitsiklis, 1999, "Actor-critic algorithms", https://papers.nips.cc/paper/1786-actor-critic-algorithms
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from danlu.acting import Agent, Discounting, Experience, Steps, Turn
from danlu.config import Config
from danlu.method.advantages import standardised
from danlu.method.descent import descend
from danlu.parts.actor_critic import POLICY_GAIN, StochasticAgent
from danlu.parts.distributions import Categorical
from danlu.parts.mlp import Networks
from danlu.parts.network import MLP, mlp_of
from danlu.random import fold
from danlu.registry import export
from danlu.spaces import Spaces


class QActorCritic(StochasticAgent):
    """A policy and action values.

    Args:
        spaces: of the environments.
        network: what both networks are.
        seed: weights follow from it.
        actor_rate: the actor's learning rate as a multiple of the critic's.
    """

    def __init__(self, spaces: Spaces, network: MLP, seed: int, actor_rate: float) -> None:
        super().__init__(spaces)
        self.actor_rate = actor_rate
        family, f = self.family, spaces.features
        key = fold(seed, "actor")
        self.actor = Networks(f, (family.outputs,), network, seed=key, gains=(POLICY_GAIN,), own=family.own)
        inputs, outputs = (f, family.outputs) if isinstance(family, Categorical) else (f + family.outputs, 1)
        self.critic = Networks(inputs, (outputs,), network, seed=fold(seed, "critic"))

    def groups(self) -> list[dict[str, Any]]:
        """See `Agent`."""
        return [
            {"params": [self.critic.theta], "lr_scale": 1.0},
            {"params": [self.actor.theta], "lr_scale": self.actor_rate},
        ]

    def outputs(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `StochasticAgent`."""
        return self.actor.answer(0, x), self.actor.own

    def q(self, x: Float[Tensor, "B F"], actions: Tensor) -> Float[Tensor, " B"]:
        """Action values."""
        if isinstance(self.family, Categorical):
            return self.critic(x)[0].gather(1, (actions - self.family.start)[:, None]).squeeze(1)
        return self.critic(torch.cat([x, actions.flatten(1)], 1))[0].squeeze(1)

    def values(self, observations: Tensor) -> Float[Tensor, " N"]:
        """See `Agent`."""
        return self.expected(self.spaces.vector(observations))

    @torch.no_grad()
    def expected(self, x: Float[Tensor, "B F"]) -> Float[Tensor, " B"]:
        """Of a choice what the policy expects, of numbers the value of those likeliest."""
        outputs, _ = self.actor(x)
        if isinstance(self.family, Categorical):
            return (outputs.softmax(1) * self.critic(x)[0]).sum(1)
        return self.q(x, outputs)


@export("method", "qac", source="Sutton et al., 1999, https://papers.nips.cc/paper/1713")
class QAC(Discounting):
    """Q actor-critic: the policy gradient weighed by learned action values."""

    mechanism: ClassVar[str] = "actor-critic"

    num_steps: int = Field(8, ge=1)
    """Steps of every environment that an update is made of."""
    baseline: bool = True
    """Take off the action values what is expected of an observation."""
    standardise: bool = True
    """Give the weights of an update mean 0 and deviation 1."""
    value_weight: float = Field(0.5, ge=0)
    """Weight of the critic's squared error."""
    entropy_weight: float = Field(0.01, ge=0)
    """Weight of the policy's entropy, which keeps it exploring."""
    actor_rate: float = Field(0.1, gt=0)
    """The actor's learning rate as a multiple of the critic's, which is the optimiser's: an actor as fast as its critic
    follows what this has not learned yet."""

    def agent(self, spaces: Spaces, network: Config | None, seed: int) -> QActorCritic:
        """See `ActingMethod`."""
        return QActorCritic(spaces, mlp_of(network, MLP()), seed, self.actor_rate)

    def learn(self, agent: Agent, experience: Experience, turn: Turn) -> Mapping[str, float | Tensor]:
        """One update."""
        assert isinstance(agent, QActorCritic)
        steps = experience.rollout(agent, self.num_steps)
        loss, metrics = self.loss(agent, steps, _next_actions(agent, steps, turn.torch_chance()))
        descend(turn, loss, [agent.actor.theta, agent.critic.theta])
        return metrics

    def loss(self, agent: QActorCritic, steps: Steps, next_actions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and what is recorded of it.

        Args:
            agent: which learns.
            steps: of what.
            next_actions: a' of each step.
        """
        x, actions = agent.spaces.vector(steps.observations.flatten(0, 1)), steps.actions.flatten(0, 1)
        with torch.no_grad():
            after = agent.q(agent.spaces.vector(steps.following.flatten(0, 1)), next_actions.flatten(0, 1))
            target = steps.rewards.flatten() + self.gamma * after * ~steps.terminated.flatten()
        q = agent.q(x, actions)
        outputs, own = agent.actor(x)
        weights = q.detach() - agent.expected(x) if self.baseline else q.detach()
        weights = standardised(weights) if self.standardise else weights
        policy_loss = -(weights * agent.family.log_prob(outputs, own, actions)).mean()
        value_loss = (target - q).square().mean()
        entropy = agent.family.entropy(outputs, own).mean()
        loss = policy_loss + self.value_weight * value_loss - self.entropy_weight * entropy
        metrics = {"loss": loss, "policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
        return loss, {name: value.detach() for name, value in metrics.items()}


def _next_actions(agent: Agent, steps: Steps, chance: torch.Generator) -> Tensor:
    """What was done next, ``[T, N, ...]``; where another episode began or the steps end, what would have been."""
    actions = torch.cat([steps.actions[1:], steps.actions[-1:]])
    unknown = steps.ended.clone()
    unknown[-1] = True
    actions[unknown] = agent.act(steps.following[unknown], chance).actions.to(actions.dtype)
    return actions
