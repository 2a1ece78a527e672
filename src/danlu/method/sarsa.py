"""Sarsa: what actions are worth under the policy that is followed, from (s, a, r, s', a').

    q(s, a) <- q(s, a) + a_k [ r + gamma q(s', a') - q(s, a) ]

a' is what is done next, chosen before the table moves; where nothing is done in s' (an episode was cut there, or the
turn is over) it is drawn from the policy.

References:
    Rummery and Niranjan, 1994, "On-line Q-learning using connectionist systems"
    Sutton and Barto, 2018, "Reinforcement learning", section 6.4, http://incompleteideas.net/book/the-book-2nd.html
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from danlu.acting import Experience
from danlu.method.tables import ActionTable
from danlu.method.temporal import Learning, TemporalDifference, Transition, next_action, transitions, with_next
from danlu.registry import export


@export("method", "sarsa", source="Rummery and Niranjan, 1994, http://incompleteideas.net/book/the-book-2nd.html")
class Sarsa(TemporalDifference):
    """Sarsa: on-policy control by temporal differences, of the action that is taken next."""

    def follow(
        self, agent: ActionTable, experience: Experience, chance: np.random.Generator, learning: Learning
    ) -> float:
        """See `TemporalDifference`; a step is learnt from when the one after it has been chosen."""
        rewards: list[float] = []

        def rows() -> Iterator[list[Transition]]:
            for _ in range(self.steps):
                steps = experience.rollout(agent, 1)
                rewards.append(float(steps.rewards.double().mean()))
                yield transitions(agent, steps)[0]

        for seen, following_action in with_next(rows(), lambda state: next_action(agent, state, chance)):
            self.learn_from(seen, following_action, learning)
        return sum(rewards) / self.steps

    def learn_from(self, seen: Transition, following_action: int, learning: Learning) -> None:
        """One update."""
        goal = seen.reward
        if not seen.terminated:
            goal = seen.reward + self.gamma * float(learning.entries[seen.following, following_action])
        learning.move((seen.state, seen.action), goal)
