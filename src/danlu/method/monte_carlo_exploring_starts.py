"""Monte Carlo with exploring starts: every episode begins with some state and action, each as likely as another.

    q(s, a) <- the mean of the returns that followed (s, a)      for all (s, a) of the episode, from its end
    pi(s)   =  argmax_a q(s, a)                                  at once

That each state and action begins episodes for ever is what makes up for a policy that never explores.

References:
    Sutton and Barto, 2018, "Reinforcement learning", section 5.3, http://incompleteideas.net/book/the-book-2nd.html
    Zhao, 2025, "Mathematical foundations of reinforcement learning", section 5.3
"""

from __future__ import annotations

import numpy as np

from danlu.method.monte_carlo import EpisodeByEpisode
from danlu.method.tables import ActionTable
from danlu.registry import export


@export(
    "method",
    "monte_carlo_exploring_starts",
    source="Sutton and Barto, 2018, http://incompleteideas.net/book/the-book-2nd.html",
)
class MonteCarloExploringStarts(EpisodeByEpisode):
    """Monte Carlo with exploring starts: a greedy policy, from episodes that begin anywhere with anything."""

    def start(self, agent: ActionTable, chance: np.random.Generator) -> tuple[int, int]:
        """See `EpisodeByEpisode`."""
        state, action = int(chance.integers(agent.num_states)), int(chance.integers(agent.num_actions))
        return state + agent.first_state, action + agent.first_action
