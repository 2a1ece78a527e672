"""Expected Sarsa: the mean over what may be done next, instead of what happens to be.

    q(s, a) <- q(s, a) + a_k [ r + gamma sum_a' pi(a' | s') q(s', a') - q(s, a) ]

pi is the epsilon-greedy policy that is followed. The mean is that of Sarsa's target, without the chance in a'.

References:
    van Seijen et al., 2009, "A theoretical and empirical analysis of expected Sarsa",
    https://doi.org/10.1109/ADPRL.2009.4927542
"""

from __future__ import annotations

from danlu.method.temporal import OneStep
from danlu.registry import export


@export("method", "expected_sarsa", source="van Seijen et al., 2009, https://doi.org/10.1109/ADPRL.2009.4927542")
class ExpectedSarsa(OneStep):
    """Expected Sarsa: on-policy control by temporal differences, of the mean over what may be done next."""

    def worth(self, actions: list[float], epsilon: float) -> float:
        """The policy's mean."""
        return (1 - epsilon) * max(actions) + epsilon * sum(actions) / len(actions)
