"""Monte Carlo with an epsilon-greedy policy: no exploring starts, since the policy itself tries everything.

    q(s, a) <- q(s, a) + a_k [ g - q(s, a) ]    for all (s, a) of the episode, from its end, g the return that followed
    pi      =  epsilon-greedy in q              at once

With a_k = 1/k that is the mean of the returns; a constant step forgets those of policies long past. What it finds is
the best of the epsilon-greedy policies, which nears the best of all as epsilon does 0.

References:
    Sutton and Barto, 2018, "Reinforcement learning", section 5.4, http://incompleteideas.net/book/the-book-2nd.html
    Zhao, 2025, "Mathematical foundations of reinforcement learning", section 5.4
"""

from __future__ import annotations

from danlu.method.exploring import Exploring
from danlu.method.monte_carlo import EpisodeByEpisode
from danlu.method.step_size import StepSize
from danlu.registry import export


@export(
    "method",
    "monte_carlo_epsilon_greedy",
    source="Sutton and Barto, 2018, http://incompleteideas.net/book/the-book-2nd.html",
)
class MonteCarloEpsilonGreedy(EpisodeByEpisode):
    """Monte Carlo with an epsilon-greedy policy: on-policy control from whole episodes."""

    step_size: StepSize = StepSize(start=0.1)
    """How far an entry moves at its k-th return: harmonic makes it the mean of all, constant forgets old ones."""
    epsilon: Exploring = Exploring()
    """The share of actions drawn from all alike."""

    def exploration(self, share: float) -> float:
        """See `EpisodeByEpisode`."""
        return self.epsilon.at(share)
