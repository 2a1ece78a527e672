"""Finite worlds written out one by one, and what a method has of one: experience that a test can count on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from gymnasium.spaces import Discrete

from danlu.acting import Agent, Choice, Replay, Steps, World
from danlu.errors import UnsupportedError
from danlu.random import fold
from danlu.spaces import Spaces

FORBIDDEN = {(1, 1), (1, 2), (2, 2), (3, 1), (3, 3), (4, 1)}
TARGET = (3, 2)
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1), (0, 0))
"""Up, right, down, left, stay."""


def book_grid(
    forbidden: float = -1.0, boundary: float = -1.0, target: float = 1.0, scale: float = 1.0, shift: float = 0.0
) -> World:
    """The grid world of the reference book: 5 by 5, its target not the end; each reward r as scale r + shift."""
    moves, rewards = np.zeros((25, 5, 25)), np.zeros((25, 5))
    for row in range(5):
        for column in range(5):
            for action, (down, right) in enumerate(MOVES):
                there = row + down, column + right
                reward = 0.0
                if not (0 <= there[0] < 5 and 0 <= there[1] < 5):
                    there, reward = (row, column), boundary
                elif there in FORBIDDEN:
                    reward = forbidden
                elif there == TARGET:
                    reward = target
                moves[row * 5 + column, action, there[0] * 5 + there[1]] = 1.0
                rewards[row * 5 + column, action] = scale * reward + shift
    return World(moves, None, rewards, np.zeros(25, bool))


def some_world(seed: int, num_states: int = 6, num_actions: int = 3, follow: int = 3, ends: int = 0) -> World:
    """A world of chance; its last `ends` states are terminal."""
    generator = np.random.default_rng(seed)
    moves = np.zeros((num_states, num_actions, num_states))
    for place in np.ndindex(num_states, num_actions):
        there = generator.choice(num_states, follow, replace=False)
        moves[place][there] = generator.dirichlet(np.ones(follow))
    terminal = np.arange(num_states) >= num_states - ends
    return World(moves, None, generator.normal(size=(num_states, num_actions)), terminal)


def corridor(length: int = 5) -> World:
    """A corridor whose last state is terminal: left or right, each step costs 1."""
    moves, rewards = np.zeros((length, 2, length)), np.full((length, 2), -1.0)
    for state in range(length):
        moves[state, 0, max(0, state - 1)] = moves[state, 1, min(length - 1, state + 1)] = 1.0
    return World(moves, None, rewards, np.arange(length) == length - 1)


def sparse(world: World) -> World:
    """The same world by the states that may follow."""
    assert world.chances is None
    num = int((world.moves > 0).sum(-1).max())
    order = np.argsort(world.moves == 0, axis=-1, kind="stable")[..., :num]
    return World(order.astype(np.int64), np.take_along_axis(world.moves, order, -1), world.rewards, world.terminal)


@dataclass
class ExperienceOf:
    """Experience of a finite world, dense: an `Experience`.

    Attributes:
        world: that.
        num_envs: environments side by side.
        seed: everything follows from it.
        limit: steps after which an episode is cut, or None.
        begins: where episodes may begin; anywhere that is not terminal by default.
    """

    world: World
    num_envs: int = 1
    seed: int = 0
    limit: int | None = None
    begins: tuple[int, ...] = ()
    known: bool = True
    states: list[int] = field(init=False)
    ages: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.luck = np.random.default_rng(self.seed)
        self.chance = torch.Generator().manual_seed(fold(self.seed, "act") % 2**63)
        self.starts = self.begins or tuple(np.flatnonzero(~self.world.terminal).tolist())
        self.states = [self.begin() for _ in range(self.num_envs)]
        self.ages = [0] * self.num_envs
        self.below = self.world.moves.cumsum(-1)

    @property
    def spaces(self) -> Spaces:
        return Spaces(Discrete(self.world.num_states), Discrete(self.world.num_actions))

    @property
    def model(self) -> World:
        if not self.known:
            raise UnsupportedError("nobody knows")
        return self.world

    @property
    def replay(self) -> Replay:
        raise UnsupportedError("nothing is remembered")

    def begin(self) -> int:
        return int(self.luck.choice(self.starts))

    def step(self, state: int, action: int) -> int:
        return int(
            np.searchsorted(self.below[state, action], self.luck.random() * self.below[state, action, -1], "right")
        )

    def rollout(self, agent: Agent, steps: int, *, explore: bool = True) -> Steps:
        rows = []
        for _ in range(steps):
            before = list(self.states)
            choice: Choice = agent.act(torch.tensor(before), self.chance if explore else None)
            following = [self.step(s, int(a)) for s, a in zip(before, choice.actions, strict=True)]
            self.ages = [age + 1 for age in self.ages]
            terminated = [bool(self.world.terminal[s]) for s in following]
            truncated = [self.limit is not None and age >= self.limit for age in self.ages]
            rewards = [float(self.world.rewards[s, int(a)]) for s, a in zip(before, choice.actions, strict=True)]
            rows.append((before, choice.actions.tolist(), rewards, terminated, truncated, following))
            for i, (ends, cut) in enumerate(zip(terminated, truncated, strict=True)):
                self.states[i] = self.begin() if ends or cut else following[i]
                self.ages[i] = 0 if ends or cut else self.ages[i]
        return steps_from(rows)

    def episode(self, agent: Agent, *, start: tuple[int, int] | None = None, longest: int) -> Steps:
        state, rows = (self.begin(), []) if start is None else (start[0], [])
        for t in range(longest):
            action = (
                start[1] if start is not None and t == 0 else int(agent.act(torch.tensor([state]), self.chance).actions)
            )
            following = state if self.world.terminal[state] else self.step(state, action)
            reward = 0.0 if self.world.terminal[state] else float(self.world.rewards[state, action])
            ends = bool(self.world.terminal[following])
            rows.append(([state], [action], [reward], [ends], [t == longest - 1 and not ends], [following]))
            state = following
            if ends:
                break
        return steps_from(rows)


def steps_from(rows: list[tuple[list[int], list[int], list[float], list[bool], list[bool], list[int]]]) -> Steps:
    states, actions, rewards, terminated, truncated, following = zip(*rows, strict=True)
    return Steps(
        torch.tensor(states),
        torch.tensor(actions),
        torch.tensor(rewards, dtype=torch.float64),
        torch.tensor(terminated),
        torch.tensor(truncated),
        torch.tensor(following),
    )
