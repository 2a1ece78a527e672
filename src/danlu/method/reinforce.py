"""REINFORCE: the gradient of what whole episodes come to, by the likelihood ratio.

    G_t = r_t + gamma G_{t+1},   loss = mean[ - (G_t - b_t) log pi(a_t | s_t) - c_e H(pi(. | s_t)) ]

The baseline b_t changes no expectation and takes away variance: nothing, the mean of the returns, or a value that a
network learns by the squared error to G_t. An episode that is cut goes on in the value of what it led to where there is
one, and counts as ended where not.

References:
    Williams, 1992, "Simple statistical gradient-following algorithms for connectionist reinforcement learning",
    https://doi.org/10.1007/BF00992696
    Sutton and Barto, 2018, "Reinforcement learning: an introduction", 13.3 and 13.4,
    http://incompleteideas.net/book/the-book.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from danlu.acting import Agent, Discounting, Experience, Steps, Turn
from danlu.config import Config
from danlu.method.advantages import advantages_of, standardised
from danlu.method.descent import descend
from danlu.parts.actor_critic import ActorCritic
from danlu.parts.network import MLP, mlp_of
from danlu.registry import export
from danlu.spaces import Spaces


@export("method", "reinforce", source="Williams, 1992, https://doi.org/10.1007/BF00992696")
class Reinforce(Discounting):
    """REINFORCE: actions become likelier the more their episode came to after them."""

    mechanism: ClassVar[str] = "policy gradient"
    by_episode: ClassVar[bool] = True

    episodes: int = Field(8, ge=1)
    """Whole episodes that an update is made of."""
    longest: int = Field(1000, ge=1)
    """Steps after which an episode is cut."""
    baseline: Literal["none", "mean", "value"] = "value"
    """What is taken off the returns: nothing, their mean over the update, or a learned value."""
    standardise: bool = True
    """Give what is left of the returns mean 0 and deviation 1."""
    value_weight: float = Field(0.5, ge=0)
    """Weight of the learned value's squared error."""
    entropy_weight: float = Field(0.0, ge=0)
    """Weight of the policy's entropy, which keeps it exploring."""

    def agent(self, spaces: Spaces, network: Config | None, seed: int) -> ActorCritic:
        """See `ActingMethod`."""
        return ActorCritic(spaces, mlp_of(network, MLP()), seed, valued=self.baseline == "value")

    def learn(self, agent: Agent, experience: Experience, turn: Turn) -> Mapping[str, float | Tensor]:
        """One update."""
        assert isinstance(agent, ActorCritic)
        episodes = [experience.episode(agent, longest=self.longest) for _ in range(self.episodes)]
        returns = torch.cat([self.returns(agent, episode) for episode in episodes])
        x = agent.spaces.vector(torch.cat([episode.observations.flatten(0, 1) for episode in episodes]))
        loss, metrics = self.loss(agent, x, torch.cat([e.actions.flatten(0, 1) for e in episodes]), returns)
        descend(turn, loss, [agent.networks.theta])
        return metrics

    def returns(self, agent: ActorCritic, episode: Steps) -> Float[Tensor, " T"]:
        """G_t of one episode: advantages over nothing, with lambda 1."""
        rewards = episode.rewards.numpy()
        nothing = np.zeros_like(rewards)
        following = nothing.copy()
        if agent.valued and not bool(episode.terminated[-1, 0]):
            said = agent.values(episode.following[-1])
            assert said is not None, "an agent with values has some"
            following[-1] = said.numpy()
        terminated, truncated = episode.terminated.numpy(), episode.truncated.numpy()
        each = advantages_of(rewards, nothing, following, terminated, truncated, gamma=self.gamma, lam=1.0)
        return torch.from_numpy(each).flatten()

    def loss(
        self, agent: ActorCritic, x: Float[Tensor, "B F"], actions: Tensor, returns: Float[Tensor, " B"]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and what is recorded of it."""
        said = agent.opinion(x, actions)
        left = returns - (returns.mean() if self.baseline == "mean" else said.values.detach())
        policy_loss = -((standardised(left) if self.standardise else left) * said.log_prob()).mean()
        entropy = said.entropy()
        loss = policy_loss - self.entropy_weight * entropy
        metrics = {"policy_loss": policy_loss, "entropy": entropy}
        if agent.valued:
            metrics["value_loss"] = value_loss = (returns - said.values).square().mean()
            loss = loss + self.value_weight * value_loss
        return loss, {name: value.detach() for name, value in (metrics | {"loss": loss}).items()}
