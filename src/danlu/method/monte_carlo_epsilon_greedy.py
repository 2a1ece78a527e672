"""Monte Carlo with an epsilon-greedy policy: no exploring starts, since the policy itself tries everything.

    q(s, a) <- the mean of the returns that followed (s, a)      for all (s, a) of the episode, from its end
    pi      =  epsilon-greedy in q                               at once

What it finds is the best of the epsilon-greedy policies, which nears the best of all as epsilon does 0.

References:
    Sutton and Barto, 2018, "Reinforcement learning", section 5.4, http://incompleteideas.net/book/the-book-2nd.html
    Zhao, 2025, "Mathematical foundations of reinforcement learning", section 5.4
"""

from __future__ import annotations

from danlu.method.exploring import Exploring
from danlu.method.monte_carlo import EpisodeByEpisode
from danlu.registry import export


@export(
    "method",
    "monte_carlo_epsilon_greedy",
    source="Sutton and Barto, 2018, http://incompleteideas.net/book/the-book-2nd.html",
)
class MonteCarloEpsilonGreedy(EpisodeByEpisode):
    """Monte Carlo with an epsilon-greedy policy: on-policy control from whole episodes."""

    epsilon: Exploring = Exploring()
    """The share of actions drawn from all alike."""

    def exploration(self, share: float) -> float:
        """See `EpisodeByEpisode`."""
        return self.epsilon.at(share)
