"""How often an agent does not do what it thinks best: epsilon-greedy policies.

    pi(a | s) = 1 - epsilon (A - 1) / A    of the best action, the first of equals
                epsilon / A                of each other

so that every action is taken in every state; the lower epsilon, the nearer the policy is to the greedy one.

References:
    Sutton and Barto, 2018, "Reinforcement learning", section 2.2, http://incompleteideas.net/book/the-book-2nd.html
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from danlu.config import Config


class Exploring(Config):
    """Epsilon, the share of actions drawn from all alike, as the run goes on."""

    start: float = Field(1.0, ge=0, le=1)
    """As it begins: what is not known yet is as good as anything else."""
    end: float | None = Field(0.05, ge=0, le=1)
    """What it falls to on a straight line; null, or more than `start`, to stay as it began."""
    over: float = Field(0.5, gt=0, le=1)
    """The share of the run that it takes to come there."""

    def at(self, share: float) -> float:
        """Epsilon when that share of the run is done, 0 to 1."""
        if self.end is None or self.end >= self.start:
            return self.start
        return self.start + (self.end - self.start) * min(1.0, share / self.over)


def epsilon_greedy(action_values: np.ndarray, epsilon: float) -> np.ndarray:
    """The chance of each action, ``[..., A]``, from what each is thought to be worth."""
    num = action_values.shape[-1]
    chances = np.full(action_values.shape, epsilon / num)
    best = action_values.argmax(-1)[..., None]
    np.put_along_axis(chances, best, 1 - epsilon * (num - 1) / num, -1)
    return chances
