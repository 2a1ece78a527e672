"""Trust region policy optimisation: the best step of the policy within a ball of KL divergence.

    maximise  L(theta) = mean[ pi(a_t | s_t) / pi_old(a_t | s_t) A_t ]    subject to  mean KL(pi_old || pi) <= delta

To first order in L and second in KL the step is along s = F^-1 g, with g the gradient of L and F the Hessian of the KL
divergence, which is Fisher's information. s is found by conjugate gradients, which ask for products F v only: the
gradient of (gradient of KL)^T v. The longest step that the second order allows, sqrt(2 delta / s^T F s) s, is shortened
until L grows and KL keeps its bound as they are; where no length does that, the policy stays. The critic follows the
returns by the optimiser.

References:
    Schulman et al., 2015, "Trust region policy optimization", https://arxiv.org/abs/1502.05477
    Hestenes and Stiefel, 1952, "Methods of conjugate gradients", https://doi.org/10.6028/jres.049.044
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from danlu.acting import Agent, Discounting, Experience, Turn
from danlu.config import Config
from danlu.method.advantages import OnPolicy
from danlu.method.descent import descend
from danlu.parts.actor_critic import SeparateActorCritic
from danlu.parts.network import MLP, mlp_of
from danlu.registry import export
from danlu.spaces import Spaces

_SOLVED = 1e-10
"""The squared residual at which a linear system counts as solved."""


@export("method", "trpo", source="Schulman et al., 2015, https://arxiv.org/abs/1502.05477")
class TRPO(Discounting):
    """Trust region policy optimisation: natural-gradient steps that never go further than a bound in KL divergence."""

    mechanism: ClassVar[str] = "policy gradient"

    num_steps: int = Field(2048, ge=1)
    """Steps of every environment that a turn is made of."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """How much of what lies further off is believed rather than the critic: 1 is the whole return, 0 one step."""
    target_kl: float = Field(0.01, gt=0)
    """delta: how far the policy may go in a turn, in nats."""
    cg_steps: int = Field(15, ge=1)
    """Steps of the conjugate gradient, at most."""
    damping: float = Field(0.1, ge=0)
    """Added to Fisher's matrix on its diagonal."""
    shrink: float = Field(0.8, gt=0, lt=1)
    """What a step is shortened by when it goes too far or gains nothing."""
    tries: int = Field(10, ge=1)
    """Lengths that are tried."""
    standardise: bool = True
    """Give the advantages mean 0 and deviation 1."""
    critic_epochs: int = Field(10, ge=0)
    """How often the critic goes over a turn's steps."""
    critic_batch_size: int = Field(128, ge=1)
    """Steps, of all environments together, that one of the critic's updates is made of."""

    def agent(self, spaces: Spaces, network: Config | None, seed: int) -> SeparateActorCritic:
        """See `ActingMethod`."""
        return SeparateActorCritic(spaces, mlp_of(network, MLP()), seed)

    def learn(self, agent: Agent, experience: Experience, turn: Turn) -> Mapping[str, float | Tensor]:
        """One step of the policy, and some of the critic."""
        assert isinstance(agent, SeparateActorCritic)
        batch, said = OnPolicy.taken(agent, experience, self.num_steps, gamma=self.gamma, lam=self.gae_lambda)
        metrics = self.improve(agent, batch)
        value_loss = self.follow(agent, batch, turn)
        return {**metrics, "value_loss": value_loss, "entropy": said.entropy(), "explained_variance": batch.explained}

    def improve(self, agent: SeparateActorCritic, batch: OnPolicy) -> dict[str, float]:
        """Move the policy, and say how far it went and what it gained."""
        region = Region.of(agent, batch.standardised if self.standardise else batch)
        theta = agent.actor.theta

        def product(v: Tensor) -> Tensor:
            return region.fisher(v) + self.damping * v

        s = conjugate_gradient(product, region.gradient, self.cg_steps)
        step = (2 * self.target_kl / (s @ product(s))).sqrt() * s
        start, kl, gain = theta.detach().clone(), 0.0, 0.0
        for i in range(self.tries):
            gained, went = region.at(start + self.shrink**i * step)
            if went <= self.target_kl and gained > 0:
                theta.data.copy_(start + self.shrink**i * step)
                kl, gain = went, gained
                break
        return {"loss": -gain, "kl": kl, "improved": float(gain > 0)}

    def follow(self, agent: SeparateActorCritic, batch: OnPolicy, turn: Turn) -> float | Tensor:
        """Move the critic, and say the last loss."""
        chance, loss = turn.torch_chance(), torch.zeros(())
        for _ in range(self.critic_epochs):
            whole = self.critic_batch_size >= len(batch)
            order = slice(None) if whole else torch.randperm(len(batch), generator=chance)
            x, returns = batch.x[order], batch.returns[order]
            for some, of in zip(x.split(self.critic_batch_size), returns.split(self.critic_batch_size), strict=True):
                loss = (agent.critic(some)[0].squeeze(1) - of).square().mean()
                descend(turn, loss, [agent.critic.theta])
        return loss.detach()


@dataclass(frozen=True)
class Region:
    """The surrogate and the divergence around a policy.

    Attributes:
        gradient: of the surrogate, ``[P]``.
        fisher: Fisher's matrix times a vector.
        at: what the surrogate gains and the mean KL divergence at other weights.
    """

    gradient: Float[Tensor, " P"]
    fisher: Callable[[Float[Tensor, " P"]], Float[Tensor, " P"]]
    at: Callable[[Float[Tensor, " P"]], tuple[float, float]]

    @classmethod
    def of(cls, agent: SeparateActorCritic, batch: OnPolicy) -> Region:
        """Of an agent at some steps."""
        advantages = batch.advantages
        actor, family, theta = agent.actor, agent.family, agent.actor.theta
        outputs, own = actor.differentiable(batch.x)
        old, old_own = outputs.detach(), own.detach()
        log_prob = family.log_prob(outputs, own, batch.actions)
        surrogate = ((log_prob - log_prob.detach()).exp() * advantages).mean()
        (gradient,) = torch.autograd.grad(surrogate, theta, retain_graph=True)
        kl = family.kl(old, old_own, outputs, own).mean()
        (slope,) = torch.autograd.grad(kl, theta, create_graph=True)

        def fisher(v: Tensor) -> Tensor:
            return torch.autograd.grad(slope @ v, theta, retain_graph=True)[0]

        @torch.no_grad()
        def at(weights: Tensor) -> tuple[float, float]:
            outputs, own = actor.differentiable(batch.x, weights)
            ratio = (family.log_prob(outputs, own, batch.actions) - log_prob).exp()
            return float(((ratio - 1) * advantages).mean()), float(family.kl(old, old_own, outputs, own).mean())

        return cls(gradient, fisher, at)


def conjugate_gradient(
    product: Callable[[Float[Tensor, " P"]], Float[Tensor, " P"]], b: Float[Tensor, " P"], steps: int
) -> Float[Tensor, " P"]:
    """X with A x = b, or as near as some steps come.

    Args:
        product: A times a vector; A is symmetric and positive.
        b: the right-hand side.
        steps: at most.
    """
    x, r = torch.zeros_like(b), b.clone()
    p, rr = r.clone(), r @ r
    for _ in range(steps):
        if rr < _SOLVED:
            break
        q = product(p)
        alpha = rr / (p @ q)
        x += alpha * p
        r -= alpha * q
        before, rr = rr, r @ r
        p = r + rr / before * p
    return x
