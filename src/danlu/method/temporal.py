"""What the methods share that learn what actions are worth from one step after another."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from danlu.acting import Agent, Experience, Spaces, Steps, Turn
from danlu.config import Config
from danlu.method.exploring import Exploring
from danlu.method.step_size import StepSize
from danlu.method.tables import ActionTable, FiniteMethod, TableAgent


class Transition(NamedTuple):
    """One step of one environment, states and actions counted from 0.

    Attributes:
        state: where it began.
        action: what was done.
        reward: what it brought.
        following: where it led.
        terminated: whether nothing is to be had from there on.
        ended: whether a new episode began after it.
    """

    state: int
    action: int
    reward: float
    following: int
    terminated: bool
    ended: bool


def transitions(agent: TableAgent, steps: Steps) -> list[list[Transition]]:
    """Steps one by one: T times, one for each of N environments."""
    columns = (
        agent.rows(steps.observations).tolist(),
        agent.columns(steps.actions).tolist(),
        steps.rewards.tolist(),
        agent.rows(steps.following).tolist(),
        steps.terminated.tolist(),
        steps.ended.tolist(),
    )
    return [[Transition(*each) for each in zip(*row, strict=True)] for row in zip(*columns, strict=True)]


@dataclass
class Tally:
    """What a turn's updates come to.

    Attributes:
        number: of updates.
        squares: their errors', summed.
        step: the last one's size.
    """

    number: int = 0
    squares: float = 0.0
    step: float = 0.0

    def add(self, error: float, step: float) -> None:
        """One more."""
        self.number, self.squares, self.step = self.number + 1, self.squares + error * error, step

    def told(self) -> dict[str, float]:
        """As it is recorded: "loss", the mean squared error, and "step_size"."""
        return {"loss": self.squares / max(1, self.number), "step_size": self.step}


def move(entries: np.ndarray, visits: np.ndarray, place: tuple[int, ...], goal: float, size: StepSize) -> float:
    """Move one entry of a table towards what was seen, and count the visit; by how much it was off."""
    visits[place] += 1
    error = float(goal - entries[place])
    entries[place] += size.move(error, int(visits[place]))
    return error


class TemporalDifference(FiniteMethod):
    """Control by temporal differences: the policy is epsilon-greedy in the table that is learnt.

    Recorded: "loss", the mean squared error of the turn's updates; "reward", the mean a step; "value", the mean over
    states of their best action's; "epsilon", "step_size".
    """

    mechanism: ClassVar[str] = "temporal difference"

    gamma: float = Field(0.9, ge=0, le=1)
    """What a reward is worth a step later."""
    step_size: StepSize = StepSize(start=0.1)
    """How far an entry moves at its k-th visit."""
    epsilon: Exploring = Exploring()
    """The share of actions drawn from all alike."""
    steps: int = Field(100, ge=1)
    """Steps of each environment a turn."""
    initial: float = 0.0
    """What every action is taken to be worth at first; more than it can be makes the agent try them all."""

    def agent(self, spaces: Spaces, network: Config | None, seed: int) -> ActionTable:
        """See `ActingMethod`."""
        return ActionTable(spaces, self.initial, self.epsilon.at(0.0))

    def learn(self, agent: Agent, experience: Experience, turn: Turn) -> Mapping[str, float | Tensor]:
        """So many steps, each learnt from as soon as what it needs has been seen."""
        assert isinstance(agent, ActionTable)
        with torch.no_grad():
            agent.epsilon.fill_(self.exploration(turn.share))
            tally = Tally()
            reward = self.follow(agent, experience, turn.numpy_chance(), tally)
        told = {"reward": reward, "value": float(agent.q.amax(1).mean()), "epsilon": float(agent.epsilon)}
        return tally.told() | told

    def exploration(self, share: float) -> float:
        """Epsilon when that share of the run is done."""
        return self.epsilon.at(share)

    @abstractmethod
    def follow(self, agent: ActionTable, experience: Experience, chance: np.random.Generator, tally: Tally) -> float:
        """Take the turn's steps and learn from them; their mean reward."""

    def update(self, agent: ActionTable, seen: Transition, goal: float, tally: Tally) -> None:
        """Move what an action is worth towards what came of it."""
        place = seen.state, seen.action
        error = move(agent.q.numpy(), agent.visits.numpy(), place, goal, self.step_size)
        tally.add(error, self.step_size.at(int(agent.visits[place])))


class OneStep(TemporalDifference):
    """Learns from a step when it knows where it led: what the next state is worth follows from the table.

        q(s, a) <- q(s, a) + a_k [ r + gamma worth(s') - q(s, a) ]
    """

    def follow(self, agent: ActionTable, experience: Experience, chance: np.random.Generator, tally: Tally) -> float:
        """See `TemporalDifference`; the table moves after every step, and before the next where that depends on it."""
        at_once = self.steps if self.fixed else 1
        rewards, epsilon = 0.0, float(agent.epsilon)
        for _ in range(self.steps // at_once):
            steps = experience.rollout(agent, at_once)
            rewards += float(steps.rewards.double().mean(1).sum())
            for row in transitions(agent, steps):
                for seen in row:
                    goal = seen.reward
                    if not seen.terminated:
                        goal += self.gamma * self.worth(agent.q[seen.following].tolist(), epsilon)
                    self.update(agent, seen, goal, tally)
        return rewards / self.steps

    @property
    def fixed(self) -> bool:
        """Whether what is done does not depend on what is learnt."""
        return False

    @abstractmethod
    def worth(self, actions: list[float], epsilon: float) -> float:
        """What a state is worth from what its actions are."""


def next_action(agent: ActionTable, state: int, chance: np.random.Generator) -> int:
    """What the policy would do in a state, drawn."""
    if chance.random() < float(agent.epsilon):
        return int(chance.integers(agent.num_actions))
    return int(agent.q.numpy()[state].argmax())
