"""Deep deterministic policy gradient: a critic of actions that are numbers, and an actor that climbs it.

    y = r + gamma Q_target(s', mu_target(s')),   critic: mean[ (Q(s, a) - y)^2 ],   actor: - mean[ Q(s, mu(s)) ]

mu is squashed by tanh into the bounds of the actions, and acts with normal noise. Steps are drawn out of all that were
taken, and the targets follow their networks by the share tau an update. Both networks know actions as numbers in
[-1, 1].

References:
    Silver et al., 2014, "Deterministic policy gradient algorithms", https://proceedings.mlr.press/v32/silver14.html
    Lillicrap et al., 2015, "Continuous control with deep reinforcement learning", https://arxiv.org/abs/1509.02971
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from gymnasium.spaces import Box
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from danlu.acting import Agent, Choice, Experience, Steps, Turn
from danlu.config import Config
from danlu.method.descent import descend
from danlu.method.replaying import Replaying
from danlu.parts.chance import even_actions, require_bounds
from danlu.parts.mlp import Networks
from danlu.parts.network import MLP, mlp_of
from danlu.random import fold
from danlu.registry import export
from danlu.spaces import Spaces


class DeterministicAgent(Agent):
    """An actor, a critic of its actions, and a target of each.

    Args:
        spaces: of the environments.
        network: what all four are.
        seed: weights follow from it.
        noise: deviation of the noise that it explores by, the bounds being -1 and 1.
        actor_rate: the actor's learning rate as a multiple of the critic's.

    Attributes:
        astray: whether it explores by choosing evenly.
    """

    def __init__(self, spaces: Spaces, network: MLP, seed: int, noise: float, actor_rate: float) -> None:
        super().__init__(spaces)
        assert isinstance(spaces.action, Box), "actions are numbers"
        low, high = (torch.from_numpy(bound.flatten()).float() for bound in (spaces.action.low, spaces.action.high))
        self.middle: Tensor
        self.reach: Tensor
        self.register_buffer("middle", (high + low) / 2, persistent=False)
        self.register_buffer("reach", (high - low) / 2, persistent=False)
        f, num = spaces.features, len(low)
        self.actor, self.target_actor = (Networks(f, (num,), network, seed=fold(seed, "actor")) for _ in range(2))
        self.critic, self.target_critic = (
            Networks(f + num, (1,), network, seed=fold(seed, "critic")) for _ in range(2)
        )
        for target in (self.target_actor, self.target_critic):
            target.requires_grad_(False)
        self.noise, self.actor_rate, self.astray = noise, actor_rate, False

    def groups(self) -> list[dict[str, Any]]:
        """See `Agent`."""
        return [
            {"params": [self.critic.theta], "lr_scale": 1.0},
            {"params": [self.actor.theta], "lr_scale": self.actor_rate},
        ]

    def act(self, observations: Tensor, chance: torch.Generator | None) -> Choice:
        """See `Agent`."""
        if chance is not None and self.astray:
            return Choice(even_actions(self.spaces.action, len(observations), chance))
        inner = torch.from_numpy(self.actor.answer(0, self.spaces.vector(observations).numpy())).tanh_()
        if chance is not None:
            inner = (inner + self.noise * torch.randn(inner.shape, generator=chance)).clamp_(-1, 1)
        return Choice(self.middle + self.reach * inner)

    def inner(self, actions: Float[Tensor, "B A"]) -> Float[Tensor, "B A"]:
        """Actions as numbers in [-1, 1]."""
        return (actions - self.middle) / self.reach

    def values(self, observations: Tensor) -> Float[Tensor, " N"]:
        """See `Agent`: what it thinks of its own action."""
        with torch.no_grad():
            x = self.spaces.vector(observations)
            return q(self.critic, x, mu(self.actor, x))


def mu(actor: Networks, x: Float[Tensor, "B F"]) -> Float[Tensor, "B A"]:
    """The action, in [-1, 1]."""
    return actor(x)[0].tanh()


def q(critic: Networks, x: Float[Tensor, "B F"], a: Float[Tensor, "B A"], *, frozen: bool = False) -> Tensor:
    """The value of an action in [-1, 1], ``[B]``; frozen, without a gradient of the critic."""
    return critic(torch.cat([x, a], 1), frozen=frozen)[0].squeeze(1)


@export("method", "ddpg", source="Lillicrap et al., 2015, https://arxiv.org/abs/1509.02971")
class DDPG(Replaying):
    """Deep deterministic policy gradient: actions climb the gradient of a learned action value."""

    mechanism: ClassVar[str] = "policy gradient"
    acts_in: ClassVar[frozenset[str]] = frozenset({"continuous"})

    num_steps: int = Field(100, ge=1)
    """Steps of every environment in a turn, an update or more behind each."""
    updates: int = Field(1, ge=1)
    """Updates behind each step of all environments."""
    batch_size: int = Field(100, ge=1)
    """Steps, drawn out of all that are remembered, that an update is made of."""
    start: int = Field(10_000, ge=1)
    """Steps that are taken, their actions chosen evenly, before the first update."""
    tau: float = Field(0.005, gt=0, le=1)
    """The share of the way to its network that a target goes at each update."""
    noise: float = Field(0.1, ge=0)
    """Deviation of the noise that it explores by, the bounds of actions being -1 and 1."""
    actor_rate: float = Field(1.0, gt=0)
    """The actor's learning rate as a multiple of the critic's, which is the optimiser's."""

    def check(self, spaces: Spaces) -> None:
        """See `ActingMethod`; actions must have bounds."""
        super().check(spaces)
        if isinstance(spaces.action, Box):
            require_bounds(spaces.action, type(self).__name__)

    def agent(self, spaces: Spaces, network: Config | None, seed: int) -> DeterministicAgent:
        """See `ActingMethod`."""
        default = MLP(hidden=(400, 300), activation="relu", initial="uniform")
        return DeterministicAgent(spaces, mlp_of(network, default), seed, self.noise, self.actor_rate)

    def learn(self, agent: Agent, experience: Experience, turn: Turn) -> Mapping[str, float | Tensor]:
        """Steps with updates between them; what is recorded is of the last."""
        assert isinstance(agent, DeterministicAgent)
        replay, chance = experience.replay, turn.numpy_chance()
        agent.astray = True
        if (missing := self.start - len(replay)) > 0:
            experience.rollout(agent, -(-missing // experience.num_envs))
        agent.astray = False
        critic_loss = actor_loss = torch.zeros(())
        for _ in range(self.num_steps):
            experience.rollout(agent, 1)
            for _ in range(self.updates):
                steps = replay.sample(self.batch_size, chance)
                x, a = agent.spaces.vector(steps.observations.flatten(0, 1)), agent.inner(steps.actions.flatten(0, 1))
                critic_loss = self.critic_loss(agent, steps, x, a)
                descend(turn, critic_loss, [agent.critic.theta])
                actor_loss = self.actor_loss(agent, x)
                descend(turn, actor_loss, [agent.actor.theta])
                self.follow(agent)
        return {"loss": critic_loss.detach(), "actor_loss": actor_loss.detach()}

    def critic_loss(self, agent: DeterministicAgent, steps: Steps, x: Tensor, a: Tensor) -> Tensor:
        """The mean squared temporal-difference error.

        Args:
            agent: which learns.
            steps: of what.
            x: their observations as vectors.
            a: their actions in [-1, 1].
        """
        return (q(agent.critic, x, a) - self.targets(agent, steps)).square().mean()

    @torch.no_grad()
    def targets(self, agent: DeterministicAgent, steps: Steps) -> Float[Tensor, " B"]:
        """The target y of each step; one whose episode was only cut goes on in what it led to."""
        following = agent.spaces.vector(steps.following.flatten(0, 1))
        after = q(agent.target_critic, following, mu(agent.target_actor, following))
        return steps.rewards.flatten() + self.gamma * after * ~steps.terminated.flatten()

    def actor_loss(self, agent: DeterministicAgent, x: Tensor) -> Tensor:
        """Less what the critic thinks of the actor's actions; its gradient goes through the critic into the actor."""
        return -q(agent.critic, x, mu(agent.actor, x), frozen=True).mean()

    @torch.no_grad()
    def follow(self, agent: DeterministicAgent) -> None:
        """Let the targets follow."""
        for target, network in ((agent.target_actor, agent.actor), (agent.target_critic, agent.critic)):
            target.theta.lerp_(network.theta, self.tau)
