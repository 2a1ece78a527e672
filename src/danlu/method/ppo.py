"""Proximal policy optimisation: several epochs on the same steps, the policy held near the one that took them.

    r_t = pi(a_t | s_t) / pi_old(a_t | s_t)
    loss = mean[ - min(r_t A_t, clip(r_t, 1 - eps, 1 + eps) A_t) + c_v (R_t - V(s_t))^2 - c_e H(pi(. | s_t)) ]

A step whose ratio has left [1 - eps, 1 + eps] on the side that its advantage drives it to has no gradient. The
advantages are those of `danlu.method.advantages`, standardised a minibatch. With `value_clip` the critic's error is
that of V_old + clip(V - V_old, -c, c).

References:
    Schulman et al., 2017, "Proximal policy optimization algorithms", https://arxiv.org/abs/1707.06347
    Huang et al., 2022, "The 37 implementation details of proximal policy optimization",
    https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
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


@export("method", "ppo", source="Schulman et al., 2017, https://arxiv.org/abs/1707.06347")
class PPO(Discounting):
    """Proximal policy optimisation: a surrogate that gains nothing from going far from the policy that acted."""

    mechanism: ClassVar[str] = "policy gradient"

    num_steps: int = Field(2048, ge=1)
    """Steps of every environment that a turn is made of."""
    batch_size: int = Field(64, ge=1)
    """Steps, of all environments together, that one update is made of."""
    epochs: int = Field(10, ge=1)
    """How often a turn goes over its steps."""
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

    def agent(self, spaces: Spaces, network: Config | None, seed: int) -> ActorCritic:
        """See `ActingMethod`."""
        return ActorCritic(spaces, mlp_of(network, MLP()), seed)

    def learn(self, agent: Agent, experience: Experience, turn: Turn) -> Mapping[str, float | Tensor]:
        """A turn's steps, and all updates made of them; what is recorded is of all the steps, after the last update."""
        assert isinstance(agent, ActorCritic)
        batch, _ = OnPolicy.taken(agent, experience, self.num_steps, gamma=self.gamma, lam=self.gae_lambda)
        clip = self.clip_range * (1 - turn.share if self.clip_decays else 1.0)
        networks = agent.networks
        for minibatch in self.minibatches(batch, turn.torch_chance()):
            passed = networks.passed(minibatch.x)
            said = agent.opinion_of(passed.said, minibatch.actions)
            log_ratio = said.log_prob() - minibatch.log_prob
            if self.target_kl is not None and distance(log_ratio) > 1.5 * self.target_kl:
                break
            networks.pull(passed, self.slope(said, minibatch, log_ratio, clip))
            step(turn, [networks.theta])
        with torch.no_grad():
            loss, metrics = self.loss(agent.opinion(batch.x, batch.actions), self._standard(batch), clip)
        return {"loss": loss, **metrics, "clip": clip, "explained_variance": batch.explained}

    def minibatches(self, batch: OnPolicy, chance: torch.Generator) -> Iterator[OnPolicy]:
        """The steps in another order each epoch, in updates; all at once where an update takes them all."""
        if self.batch_size >= len(batch):
            yield from [self._standard(batch)] * self.epochs
            return
        for _ in range(self.epochs):
            mixed = batch.rows(torch.randperm(len(batch), generator=chance))
            for start in range(0, len(batch), self.batch_size):
                yield self._standard(mixed.rows(slice(start, start + self.batch_size)))

    def _standard(self, batch: OnPolicy) -> OnPolicy:
        return batch.standardised if self.standardise else batch

    def loss(self, said: Opinion, batch: OnPolicy, clip: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and what is recorded beside it.

        Args:
            said: what the agent thinks of the steps.
            batch: the steps.
            clip: eps.
        """
        log_ratio = said.log_prob() - batch.log_prob
        ratio, advantages, values = log_ratio.exp(), batch.advantages, said.values
        policy_loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages).mean()
        if self.value_clip is not None:
            values = batch.values + (values - batch.values).clamp(-self.value_clip, self.value_clip)
        value_loss, entropy = (batch.returns - values).square().mean(), said.entropy()
        loss = policy_loss + self.value_weight * value_loss - self.entropy_weight * entropy
        metrics = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
        metrics |= {"kl": distance(log_ratio), "clipped": ((ratio - 1).abs() > clip).float().mean()}
        return loss, metrics

    @torch.no_grad()
    def slope(
        self, said: Opinion, batch: OnPolicy, log_ratio: Float[Tensor, " B"], clip: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss's gradient by what the networks say: the policy's outputs, the values, and the own numbers.

        Args:
            said: see `loss`.
            batch: see `loss`.
            log_ratio: log r_t of each step.
            clip: see `loss`.
        """
        ratio, advantages, num = log_ratio.exp(), batch.advantages, len(batch)
        held = torch.where(advantages > 0, ratio > 1 + clip, ratio < 1 - clip)
        pull = (ratio * advantages).masked_fill_(held, 0).mul_(-1 / num)
        outputs, own = said.family.slope(said.outputs, said.own, said.actions, pull, -self.entropy_weight / num)
        values = (said.values - batch.returns).mul_(2 * self.value_weight / num)
        if self.value_clip is not None:
            gone = said.values - batch.values
            bounded = gone.clamp(-self.value_clip, self.value_clip)
            values = (batch.values + bounded - batch.returns).mul_(2 * self.value_weight / num)
            values.masked_fill_(gone != bounded, 0)
        return outputs, values[:, None], own


def distance(log_ratio: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """About KL(pi_old || pi), in nats: the mean of r - 1 - log r, which is never negative."""
    return (log_ratio.expm1() - log_ratio).mean()
