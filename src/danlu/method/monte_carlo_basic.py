"""Monte Carlo Basic: policy iteration whose evaluation is the mean return of episodes instead of the model.

    q_k(s, a) = mean return of episodes that begin with (s, a) and follow pi_k      for every s and a
    pi_k+1(s) = argmax_a q_k(s, a)

It uses one return an episode, from its first step, so that it takes many episodes; what it shows is that a model can be
had back from experience.

References:
    Zhao, 2025, "Mathematical foundations of reinforcement learning", section 5.2,
    https://github.com/MathFoundationRL/Book-Mathematical-Foundation-of-Reinforcement-Learning
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from danlu.acting import Experience, Turn
from danlu.config import Config
from danlu.method.monte_carlo import MonteCarlo, Outcomes, episode_of, returns
from danlu.method.step_size import StepSize
from danlu.method.tables import ActionTable
from danlu.registry import export
from danlu.spaces import Spaces


@export(
    "method",
    "monte_carlo_basic",
    source="Zhao, 2025, https://github.com/MathFoundationRL/Book-Mathematical-Foundation-of-Reinforcement-Learning",
)
class MonteCarloBasic(MonteCarlo):
    """Monte Carlo Basic: policy iteration without a model, from episodes that begin everywhere."""

    episodes: int = Field(1, ge=1)
    """Episodes from each state and action a turn; one does where nothing is random."""

    @property
    def way(self) -> StepSize:
        """See `MonteCarlo`; all of it."""
        return StepSize(start=1.0)

    def agent(self, spaces: Spaces, network: Config | None, seed: int) -> ActionTable:
        """See `ActingMethod`."""
        return ActionTable(spaces)

    def listen(self, agent: ActionTable, experience: Experience, turn: Turn, outcomes: Outcomes) -> None:
        """Value the policy from every state and action; it changes when all have been."""
        means = np.zeros((agent.num_states, agent.num_actions))
        for place in np.ndindex(*means.shape):
            found = [self.first_return(agent, experience, place, outcomes) for _ in range(self.episodes)]
            means[place] = np.mean(found)
        for place in np.ndindex(*means.shape):
            outcomes.learning.move(place, float(means[place]))

    def first_return(
        self, agent: ActionTable, experience: Experience, place: tuple[int, ...], outcomes: Outcomes
    ) -> float:
        """The return of one episode that begins with a state and an action."""
        start = place[0] + agent.first_state, place[1] + agent.first_action
        episode = episode_of(agent, experience.episode(agent, start=start, longest=self.longest))
        found = returns(episode, self.gamma)
        outcomes.add(episode, found)
        return found[0] if found else 0.0
