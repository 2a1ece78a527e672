"""What the methods share that learn what actions are worth from whole episodes: returns, and tables that follow them.

    g_t = r_t+1 + gamma r_t+2 + gamma^2 r_t+3 + ...

An episode that was cut short lacks what would have come after: its returns miss up to gamma^m of the values, m steps
before the cut, so the last steps of such an episode may be left out (`unfinished`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from danlu.acting import Agent, Experience, Steps, Turn
from danlu.config import Config
from danlu.method.step_size import StepSize
from danlu.method.tables import ActionTable, FiniteMethod, TableAgent
from danlu.method.temporal import Learning, Transition, transitions
from danlu.spaces import Spaces


def episode_of(agent: TableAgent, steps: Steps) -> list[Transition]:
    """One environment's steps."""
    return [row[0] for row in transitions(agent, steps)]


def returns(episode: list[Transition], gamma: float) -> list[float]:
    """What came after each step's beginning, discounted."""
    found, total = [0.0] * len(episode), 0.0
    for t in range(len(episode) - 1, -1, -1):
        total = found[t] = episode[t].reward + gamma * total
    return found


@dataclass
class Outcomes:
    """What a turn's episodes come to.

    Attributes:
        learning: the table, and what its updates come to.
        first: each episode's discounted return from its beginning.
        lengths: their steps.
    """

    learning: Learning
    first: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def add(self, episode: list[Transition], found: list[float]) -> None:
        """One more episode, and its returns."""
        self.first.append(found[0] if found else 0.0)
        self.lengths.append(len(episode))

    def told(self) -> dict[str, float]:
        """As it is recorded."""
        seen = {"return": float(np.mean(self.first)), "length": float(np.mean(self.lengths))} if self.first else {}
        return self.learning.told() | seen


class MonteCarlo(FiniteMethod):
    """Control by whole episodes' returns.

    Recorded: "loss", the mean squared error of the turn's updates; "return", the mean discounted return of its
    episodes; "length", their mean steps; "value", the mean over states of their best action's; "epsilon", "step_size".
    """

    mechanism: ClassVar[str] = "Monte Carlo"
    by_episode: ClassVar[bool] = True

    longest: int = Field(100, ge=1)
    """Steps after which an episode is cut short; rewards beyond are worth gamma^longest of themselves."""

    def learn(self, agent: Agent, experience: Experience, turn: Turn) -> Mapping[str, float | Tensor]:
        """The turn's episodes."""
        assert isinstance(agent, ActionTable)
        with torch.no_grad():
            outcomes = Outcomes(Learning(agent.q.numpy(), agent.visits.numpy(), self.way))
            self.listen(agent, experience, turn, outcomes)
            value = float(agent.q.amax(1).mean())
        return outcomes.told() | {"value": value, "epsilon": float(agent.epsilon)}

    @property
    @abstractmethod
    def way(self) -> StepSize:
        """How far an entry moves towards what was seen."""

    @abstractmethod
    def listen(self, agent: ActionTable, experience: Experience, turn: Turn, outcomes: Outcomes) -> None:
        """Take the turn's episodes and learn from them."""


class EpisodeByEpisode(MonteCarlo):
    """Learns from an episode's every step, from its end backwards, and acts by what it learned from the next one on."""

    episodes: int = Field(10, ge=1)
    """Episodes a turn."""
    visits: Literal["every", "first"] = "first"
    """Which returns of a state and action count that come more than once in an episode; the first is the longest."""
    unfinished: int = Field(0, ge=0)
    """Of an episode that was cut short, the last so many steps are not learnt from."""
    step_size: StepSize = StepSize(kind="harmonic")
    """How far an entry moves at its k-th return: harmonic makes it the mean of all, constant forgets old ones."""
    initial: float = 0.0
    """What every action is taken to be worth at first."""

    @property
    def way(self) -> StepSize:
        """See `MonteCarlo`."""
        return self.step_size

    def agent(self, spaces: Spaces, network: Config | None, seed: int) -> ActionTable:
        """See `ActingMethod`."""
        return ActionTable(spaces, self.initial, self.exploration(0.0))

    def listen(self, agent: ActionTable, experience: Experience, turn: Turn, outcomes: Outcomes) -> None:
        """See `MonteCarlo`; so many episodes."""
        agent.epsilon.fill_(self.exploration(turn.share))
        chance = turn.numpy_chance()
        for _ in range(self.episodes):
            start = self.start(agent, chance)
            self.take(agent, experience.episode(agent, start=start, longest=self.longest), outcomes)

    def exploration(self, share: float) -> float:
        """Epsilon when that share of the run is done."""
        return 0.0

    def start(self, agent: ActionTable, chance: np.random.Generator) -> tuple[int, int] | None:
        """The state and the action that an episode begins with; None where the environment says."""
        return None

    def take(self, agent: ActionTable, steps: Steps, outcomes: Outcomes) -> None:
        """Learn from one episode."""
        episode = episode_of(agent, steps)
        found = returns(episode, self.gamma)
        outcomes.add(episode, found)
        cut = bool(episode) and not episode[-1].terminated
        episode = episode[: max(0, len(episode) - self.unfinished)] if cut else episode
        first = {(seen.state, seen.action): t for t, seen in reversed(list(enumerate(episode)))}
        for t in range(len(episode) - 1, -1, -1):
            place = episode[t].state, episode[t].action
            if self.visits == "every" or first[place] == t:
                outcomes.learning.move(place, found[t])
