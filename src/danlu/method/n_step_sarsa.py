"""n-step Sarsa: n rewards as they came, and what the action after them is worth.

    g           =  r_t+1 + gamma r_t+2 + ... + gamma^(n-1) r_t+n + gamma^n q(s_t+n, a_t+n)
    q(s_t, a_t) <- q(s_t, a_t) + a_k [ g - q(s_t, a_t) ]

n = 1 is Sarsa; n without end is Monte Carlo learning: less bias by a table not yet learnt, more variance. What is left
of fewer than n steps at an episode's end, or a turn's, is learnt from as it is.

References:
    Sutton and Barto, 2018, "Reinforcement learning", section 7.2, http://incompleteideas.net/book/the-book-2nd.html
    Zhao, 2025, "Mathematical foundations of reinforcement learning", section 7.3
"""

from __future__ import annotations

from collections import deque

import numpy as np
from pydantic import Field

from danlu.acting import Experience
from danlu.method.tables import ActionTable
from danlu.method.temporal import Learning, TemporalDifference, Transition, next_action, transitions
from danlu.registry import export


@export("method", "n_step_sarsa", source="Sutton and Barto, 2018, http://incompleteideas.net/book/the-book-2nd.html")
class NStepSarsa(TemporalDifference):
    """n-step Sarsa: between Sarsa and Monte Carlo learning."""

    n: int = Field(4, ge=1)
    """Rewards that are taken as they came."""

    def follow(
        self, agent: ActionTable, experience: Experience, chance: np.random.Generator, learning: Learning
    ) -> float:
        """See `TemporalDifference`; a step is learnt from n steps later."""
        paths: list[deque[Transition]] = [deque() for _ in range(experience.num_envs)]
        rewards = 0.0
        for _ in range(self.steps):
            steps = experience.rollout(agent, 1)
            rewards += float(steps.rewards.double().mean())
            for path, seen in zip(paths, transitions(agent, steps)[0], strict=True):
                if len(path) == self.n:
                    self.learn_first(path, (seen.state, seen.action), learning)
                path.append(seen)
                if seen.ended:
                    self.finish(agent, path, chance, learning)
        for path in paths:
            self.finish(agent, path, chance, learning)
        return rewards / self.steps

    def finish(
        self, agent: ActionTable, path: deque[Transition], chance: np.random.Generator, learning: Learning
    ) -> None:
        """Learn from all that is left of a path, which goes no further."""
        if path:
            last = path[-1]
            after = last.following, next_action(agent, last.following, chance)
            while path:
                self.learn_first(path, None if last.terminated else after, learning)

    def learn_first(self, path: deque[Transition], after: tuple[int, int] | None, learning: Learning) -> None:
        """Learn from the first step of a path, given the state and action behind it, and let it go."""
        goal = 0.0 if after is None else float(learning.entries[after])
        for seen in reversed(path):
            goal = seen.reward + self.gamma * goal
        first = path.popleft()
        learning.move((first.state, first.action), goal)
