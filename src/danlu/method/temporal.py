"""What the methods share that learn what actions are worth from one step after another."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from danlu.acting import Agent, Experience, Steps, Turn
from danlu.config import Config
from danlu.method.exploring import Exploring
from danlu.method.step_size import StepSize
from danlu.method.tables import ActionTable, FiniteMethod, TableAgent
from danlu.spaces import Spaces


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
        steps.rewards.cpu().numpy().tolist(),
        agent.rows(steps.following).tolist(),
        steps.terminated.cpu().numpy().tolist(),
        steps.ended.cpu().numpy().tolist(),
    )
    return [[Transition(*each) for each in zip(*row, strict=True)] for row in zip(*columns, strict=True)]


class Learning:
    """A table that is learnt, and what a turn's updates come to.

    Args:
        entries: the table, moved in place.
        visits: how often each entry was learnt from, of the table's shape.
        size: how far an entry moves at its k-th visit.

    Attributes:
        number: of updates.
        squares: their errors', summed.
        step: the last one's size.
    """

    def __init__(self, entries: np.ndarray, visits: np.ndarray, size: StepSize) -> None:
        self.entries, self.visits, self.size = entries, visits, size
        self.number, self.squares, self.step = 0, 0.0, 0.0

    def move(self, place: tuple[int, ...], goal: float) -> None:
        """Move one entry towards what was seen: ``q <- q + a_k (goal - q)``."""
        k = int(self.visits[place]) + 1
        error = goal - float(self.entries[place])
        self.visits[place] = k
        self.entries[place] += self.size.move(error, k)
        self.number, self.squares, self.step = self.number + 1, self.squares + error * error, self.size.at(k)

    def told(self) -> dict[str, float]:
        """As it is recorded: "loss", the mean squared error, and "step_size"."""
        return {"loss": self.squares / max(1, self.number), "step_size": self.step}


class TemporalDifference(FiniteMethod):
    """Control by temporal differences: the policy is epsilon-greedy in the table that is learnt.

    Recorded: "loss", the mean squared error of the turn's updates; "reward", the mean a step; "value", the mean over
    states of their best action's; "epsilon", "step_size".
    """

    mechanism: ClassVar[str] = "temporal difference"

    step_size: StepSize = StepSize(start=0.1)
    """How far an entry moves at its k-th visit."""
    epsilon: Exploring = Exploring()
    """The share of actions drawn from all alike."""
    steps: int = Field(200, ge=1)
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
            learning = Learning(agent.q.numpy(), agent.visits.numpy(), self.step_size)
            reward = self.follow(agent, experience, turn.numpy_chance(), learning)
        told = {"reward": reward, "value": float(agent.q.amax(1).mean()), "epsilon": float(agent.epsilon)}
        return learning.told() | told

    def exploration(self, share: float) -> float:
        """Epsilon when that share of the run is done."""
        return self.epsilon.at(share)

    @abstractmethod
    def follow(
        self, agent: ActionTable, experience: Experience, chance: np.random.Generator, learning: Learning
    ) -> float:
        """Take the turn's steps and learn from them; their mean reward."""


class OneStep(TemporalDifference):
    """Learns from a step when it knows where it led: what the next state is worth follows from the table.

    q(s, a) <- q(s, a) + a_k [ r + gamma worth(s') - q(s, a) ]
    """

    def follow(
        self, agent: ActionTable, experience: Experience, chance: np.random.Generator, learning: Learning
    ) -> float:
        """See `TemporalDifference`; the table moves after every step, and before the next where that depends on it."""
        at_once = self.steps if self.fixed else 1
        rewards, epsilon = 0.0, float(agent.epsilon)
        for _ in range(self.steps // at_once):
            steps = experience.rollout(agent, at_once)
            rewards += float(steps.rewards.double().mean(1).sum())
            for seen in chain.from_iterable(transitions(agent, steps)):
                goal = seen.reward
                if not seen.terminated:
                    goal += self.gamma * self.worth(learning.entries[seen.following].tolist(), epsilon)
                learning.move((seen.state, seen.action), goal)
        return rewards / self.steps

    @property
    def fixed(self) -> bool:
        """Whether what is done does not depend on what is learnt."""
        return False

    @abstractmethod
    def worth(self, actions: list[float], epsilon: float) -> float:
        """What a state is worth from what its actions are."""


class Taken(Protocol):
    """One step of one environment, as far as it matters which comes after it."""

    @property
    def action(self) -> int:
        """What was done."""
        ...

    @property
    def following(self) -> Any:
        """Where it led."""
        ...

    @property
    def ended(self) -> bool:
        """Whether a new episode began after it."""
        ...


S = TypeVar("S", bound=Taken)


def with_next(rows: Iterable[Sequence[S]], draw: Callable[[Any], int]) -> Iterator[tuple[S, int]]:
    """Steps, each with the action that was taken after it, or with one that is drawn where none was.

    What is learnt from one is learnt before the next row of steps is taken.

    Args:
        rows: a step of each of N environments, again and again.
        draw: an action of the policy, where a step has led.
    """
    waiting: list[S | None] = []
    for row in rows:
        waiting = waiting or [None] * len(row)
        for number, seen in enumerate(row):
            before = waiting[number]
            if before is not None:
                yield before, seen.action
            if seen.ended:
                yield seen, draw(seen.following)
            waiting[number] = None if seen.ended else seen
    for last in waiting:
        if last is not None:
            yield last, draw(last.following)


def next_action(agent: ActionTable, state: int, chance: np.random.Generator) -> int:
    """What the policy would do in a state, drawn."""
    if chance.random() < float(agent.epsilon):
        return int(chance.integers(agent.num_actions))
    return int(agent.q.numpy()[state].argmax())
