"""Proximal policy optimisation: several epochs on the same steps, the policy held near the one that took them.

    r_t = pi(a_t | s_t) / pi_old(a_t | s_t)
    loss = mean[ - min(r_t A_t, clip(r_t, 1 - eps, 1 + eps) A_t) + c_v (R_t - V(s_t))^2 - c_e H(pi(. | s_t)) ]

A step whose ratio has left [1 - eps, 1 + eps] on the side that its advantage drives it to has no gradient. The
advantages are those of `danlu.method.advantages`, standardised a minibatch. With `value_clip` the critic's error is that
of V_old + clip(V - V_old, -c, c).

References:
    Schulman et al., 2017, "Proximal policy optimization algorithms", https://arxiv.org/abs/1707.06347
    Huang et al., 2022, "The 37 implementation details of proximal policy optimization",
    https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from danlu.acting import ActingMethod, Agent, Experience, Spaces, Turn
from danlu.config import Config
from danlu.method.advantages import OnPolicy, standardised
from danlu.method.descent import descend
from danlu.parts.actor_critic import ActorCritic, Opinion
from danlu.parts.network import MLP, mlp_of
from danlu.registry import export


@export("method", "ppo", source="Schulman et al., 2017, https://arxiv.org/abs/1707.06347")
class PPO(ActingMethod):
    """Proximal policy optimisation: a surrogate that gains nothing from going far from the policy that acted."""

    mechanism: ClassVar[str] = "policy gradient"

    num_steps: int = Field(2048, ge=1)
    """Steps of every environment that a turn is made of."""
    batch_size: int = Field(64, ge=1)
    """Steps, of all environments together, that one update is made of."""
    epochs: int = Field(10, ge=1)
    """How often a turn goes over its steps."""
    gamma: float = Field(0.99, ge=0, le=1)
    """What a reward one step later is worth."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """How much of what lies further off is believed rather than the critic: 1 is the whole return, 0 one step."""
    clip_range: float = Field(0.2, gt=0)
    """eps: how far the ratio of probabilities gains by leaving 1."""
    clip_decays: bool = False
    """Whether eps falls to 0 over the run, in a straight line."""
    value_clip: float | None = Field(None, gt=0)
    """How far a value gains by leaving what it was; null does not bound it."""
    value_weight: float = Field(0.5, ge=0)
    """Weight of the critic's squared error."""
    entropy_weight: float = Field(0.0, ge=0)
    """Weight of the policy's entropy, which keeps it exploring."""
    standardise: bool = True
    """Give the advantages of an update mean 0 and deviation 1."""
    target_kl: float | None = Field(None, gt=0)
    """A turn ends early when the policy has gone one and a half times as far (KL, in nats); null never does."""
    clip_norm: float | None = Field(0.5, gt=0)
    """The gradient is scaled down to this norm when it is longer; null never does."""

    def agent(self, spaces: Spaces, network: Config | None, seed: int) -> ActorCritic:
        """See `ActingMethod`."""
        return ActorCritic(spaces, mlp_of(network, MLP()), seed)

    def learn(self, agent: Agent, experience: Experience, turn: Turn) -> Mapping[str, float | Tensor]:
        """A turn's steps, and all updates made of them; what is recorded is of all the steps, after the last update."""
        assert isinstance(agent, ActorCritic)
        steps = experience.rollout(agent, self.num_steps)
        x = agent.spaces.vector(steps.observations.flatten(0, 1))
        with torch.no_grad():
            said = agent.opinion(x, steps.actions.flatten(0, 1))
        batch = OnPolicy.of(agent, steps, x, said, gamma=self.gamma, lam=self.gae_lambda)
        clip = self.clip_range * (1 - turn.share if self.clip_decays else 1.0)
        for minibatch in self.minibatches(batch, turn.torch_chance()):
            terms = self.terms(agent, minibatch, clip)
            if self.target_kl is not None and terms.kl() > 1.5 * self.target_kl:
                break
            descend(turn.optimizer, self.loss(terms), [agent.networks.theta], self.clip_norm)
        with torch.no_grad():
            terms = self.terms(agent, batch, clip)
            metrics = {"loss": self.loss(terms), "policy_loss": terms.policy, "value_loss": terms.value}
            metrics |= {"entropy": terms.said.entropy(), "kl": terms.kl(), "clipped": terms.clipped(clip)}
        return {**metrics, "clip": clip, "explained_variance": batch.explained}

    def minibatches(self, batch: OnPolicy, chance: torch.Generator) -> Iterator[OnPolicy]:
        """The steps in another order each epoch, in updates; all at once where an update takes them all."""
        if self.batch_size >= len(batch):
            yield from [batch] * self.epochs
            return
        for _ in range(self.epochs):
            mixed = batch.rows(torch.randperm(len(batch), generator=chance))
            for start in range(0, len(batch), self.batch_size):
                yield mixed.rows(slice(start, start + self.batch_size))

    def terms(self, agent: ActorCritic, batch: OnPolicy, clip: float) -> Terms:
        """What the loss is made of.

        Args:
            agent: which learns.
            batch: of what.
            clip: eps.
        """
        said = agent.opinion(batch.x, batch.actions)
        advantages = standardised(batch.advantages) if self.standardise else batch.advantages
        log_ratio = said.log_prob() - batch.log_prob
        ratio = log_ratio.exp()
        policy = -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages).mean()
        values = said.values
        if self.value_clip is not None:
            values = batch.values + (values - batch.values).clamp(-self.value_clip, self.value_clip)
        return Terms(policy, (batch.returns - values).square().mean(), said, log_ratio)

    def loss(self, terms: Terms) -> Tensor:
        """The loss."""
        loss = terms.policy + self.value_weight * terms.value
        return loss - self.entropy_weight * terms.said.entropy() if self.entropy_weight else loss


@dataclass(frozen=True, eq=False)
class Terms:
    """What the loss of some steps is made of.

    Attributes:
        policy: less the clipped surrogate.
        value: the critic's squared error.
        said: what the agent thinks of the steps.
        log_ratio: of each, the logarithm of r_t.
    """

    policy: Float[Tensor, ""]
    value: Float[Tensor, ""]
    said: Opinion
    log_ratio: Float[Tensor, " B"]

    def kl(self) -> Float[Tensor, ""]:
        """About KL(pi_old || pi), in nats: the mean of r - 1 - log r, which is never negative."""
        log_ratio = self.log_ratio.detach()
        return (log_ratio.expm1() - log_ratio).mean()

    def clipped(self, clip: float) -> Float[Tensor, ""]:
        """The share of steps whose ratio has left the range."""
        return (self.log_ratio.detach().expm1().abs() > clip).float().mean()
