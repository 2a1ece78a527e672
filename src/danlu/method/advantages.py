"""How much better an action was than what was expected: generalised advantage estimation.

    delta_t = r_t + gamma V(s'_t) - V(s_t),   A_t = delta_t + gamma lambda A_{t+1}

s'_t is what the step led to. Where it ended its episode V(s'_t) is 0; where the episode was only cut there (a time
limit, say) it would have gone on, and V(s'_t) stands for what would have come. Behind either of them A_{t+1} is of
another episode and is left out. lambda = 0 is the temporal-difference error, lambda = 1 the return less the value.

References:
    Schulman et al., 2015, "High-dimensional continuous control using generalized advantage estimation",
    https://arxiv.org/abs/1506.02438
    Pardo et al., 2017, "Time limits in reinforcement learning", https://arxiv.org/abs/1712.00378
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from danlu.acting import Agent, Experience, Steps
from danlu.parts.actor_critic import ActorCritic, Opinion, SeparateActorCritic


def advantages_of(
    rewards: Float[np.ndarray, "T N"],
    values: Float[np.ndarray, "T N"],
    following: Float[np.ndarray, "T N"],
    terminated: Bool[np.ndarray, "T N"],
    truncated: Bool[np.ndarray, "T N"],
    *,
    gamma: float,
    lam: float,
) -> Float[np.ndarray, "T N"]:
    """The advantages A_t.

    Args:
        rewards: r_t.
        values: V(s_t).
        following: V(s'_t); not looked at where the episode ended.
        terminated: whether nothing is to be had after the step.
        truncated: whether the episode was cut after it.
        gamma: what a reward one step later is worth, 0 to 1.
        lam: how much of what lies further off is believed rather than V, 0 to 1.
    """
    dtype = values.dtype.type
    delta = rewards + dtype(gamma) * np.where(terminated, 0, following) - values
    decay = np.where(terminated | truncated, 0, dtype(gamma * lam)).astype(dtype, copy=False)
    for t in range(len(delta) - 2, -1, -1):
        delta[t] += decay[t] * delta[t + 1]
    return delta


def values_following(agent: Agent, steps: Steps, values: Float[np.ndarray, "T N"]) -> Float[np.ndarray, "T N"]:
    """V(s'_t), of which most were said already: what a step led to is what the next one began from.

    Args:
        agent: asked about what no step began from: the last row, and where an episode was cut.
        steps: of which.
        values: V(s_t), as the agent said.
    """
    following = np.empty_like(values)
    following[:-1] = values[1:]
    unsaid = steps.truncated.numpy().copy()
    unsaid[-1] = True
    unsaid &= ~steps.terminated.numpy()
    if unsaid.any():
        said = agent.values(steps.following[torch.from_numpy(unsaid)])
        assert said is not None, "an agent whose values are asked for has some"
        following[unsaid] = said.numpy()
    return following


@dataclass(frozen=True)
class OnPolicy:
    """Steps of an agent as rows to learn from, B = T N.

    Attributes:
        x: observations as vectors.
        actions: what was done.
        log_prob: of it, as the agent said then.
        values: as it said then.
        advantages: as they come of all that followed.
        returns: advantages + values, which values are to become.
    """

    x: Float[Tensor, "B F"]
    actions: Tensor
    log_prob: Float[Tensor, " B"]
    values: Float[Tensor, " B"]
    advantages: Float[Tensor, " B"]
    returns: Float[Tensor, " B"]

    @classmethod
    def of(
        cls, agent: Agent, steps: Steps, x: Float[Tensor, "B F"], said: Opinion, *, gamma: float, lam: float
    ) -> OnPolicy:
        """Rows of an agent's own steps.

        Args:
            agent: which took them.
            steps: of which.
            x: their observations as vectors.
            said: what the agent says of them, before it learns.
            gamma: see `advantages_of`.
            lam: see `advantages_of`.
        """
        values = said.values.detach().view(steps.rewards.shape).numpy()
        ends = steps.terminated.numpy(), steps.truncated.numpy()
        following = values_following(agent, steps, values)
        advantages = advantages_of(steps.rewards.numpy(), values, following, *ends, gamma=gamma, lam=lam)
        return cls(
            x,
            steps.actions.flatten(0, 1),
            said.log_prob().detach(),
            said.values.detach(),
            torch.from_numpy(advantages).flatten(),
            torch.from_numpy(advantages + values).flatten(),
        )

    @classmethod
    @torch.no_grad()
    def taken(
        cls,
        agent: ActorCritic | SeparateActorCritic,
        experience: Experience,
        steps: int,
        *,
        gamma: float,
        lam: float,
    ) -> tuple[OnPolicy, Opinion]:
        """Rows of an agent's next steps in every environment, T of them, and what it says of them.

        Args:
            agent: which takes them.
            experience: where.
            steps: T.
            gamma: see `advantages_of`.
            lam: see `advantages_of`.
        """
        taken = experience.rollout(agent, steps)
        x = agent.spaces.vector(taken.observations.flatten(0, 1))
        said = agent.opinion(x, taken.actions.flatten(0, 1))
        return cls.of(agent, taken, x, said, gamma=gamma, lam=lam), said

    @property
    def standardised(self) -> OnPolicy:
        """The same, advantages with mean 0 and deviation 1."""
        return replace(self, advantages=standardised(self.advantages))

    def __len__(self) -> int:
        """B."""
        return len(self.advantages)

    def rows(self, which: Tensor | slice) -> OnPolicy:
        """Some of them."""
        return OnPolicy(
            *(t[which] for t in (self.x, self.actions, self.log_prob, self.values, self.advantages, self.returns))
        )

    @property
    def explained(self) -> float:
        """The share of the returns' variance that the values said: 1 is all of it; 0 or less is of no use.

        Returns that are all alike have none, and it is 0.
        """
        var = float(self.returns.var(correction=0))
        return 1 - float((self.returns - self.values).var(correction=0)) / var if var else 0.0


def standardised(advantages: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """With mean 0 and deviation 1; a single one as it is."""
    if len(advantages) < 2:
        return advantages
    std, mean = torch.std_mean(advantages)
    return (advantages - mean) / (std + 1e-8)
