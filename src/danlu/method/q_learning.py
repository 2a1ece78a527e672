"""Q-learning: what actions are worth if one does what is best from then on, whatever is done meanwhile.

    q(s, a) <- q(s, a) + a_k [ r + gamma max_a' q(s', a') - q(s, a) ]

It seeks the solution of Bellman's optimality equation, so the policy that is followed may be any that takes every
action in every state: the epsilon-greedy one of what is learnt (on-policy), or another (off-policy), as all alike.

References:
    Watkins, 1989, "Learning from delayed rewards", http://www.cs.rhul.ac.uk/~chrisw/new_thesis.pdf
    Watkins and Dayan, 1992, "Q-learning", https://doi.org/10.1007/BF00992698
"""

from __future__ import annotations

from typing import Literal

from danlu.method.temporal import OneStep
from danlu.registry import export


@export("method", "q_learning", source="Watkins and Dayan, 1992, https://doi.org/10.1007/BF00992698")
class QLearning(OneStep):
    """Q-learning: off-policy control by temporal differences, of the best that may be done next."""

    behaviour: Literal["epsilon_greedy", "uniform"] = "epsilon_greedy"
    """What is done while it learns: the epsilon-greedy policy of what is learnt, or all actions alike."""

    @property
    def fixed(self) -> bool:
        """See `OneStep`."""
        return self.behaviour == "uniform"

    def exploration(self, share: float) -> float:
        """See `TemporalDifference`."""
        return 1.0 if self.fixed else self.epsilon.at(share)

    def worth(self, actions: list[float], epsilon: float) -> float:
        """The best action's."""
        return max(actions)
