"""Agents of finite worlds, which keep a number for each state, or for each state and action, in float64.

A table is a parameter without a gradient: it is saved like a network's weights, and no optimiser moves it.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from danlu.acting import Agent, Choice, Discounting, Goal, Level, World
from danlu.errors import UnsupportedError
from danlu.method.bellman import Bellman
from danlu.spaces import Spaces, in_words


def table(*shape: int) -> nn.Parameter:
    """A table of zeros that no gradient moves."""
    return nn.Parameter(torch.zeros(*shape, dtype=torch.float64), requires_grad=False)


def sizes(spaces: Spaces) -> tuple[int, int]:
    """How many states and actions there are.

    Raises:
        UnsupportedError: where there is no end of either.
    """
    num_states, num_actions = spaces.num_states, spaces.num_actions
    if num_states is None or num_actions is None:
        shown, taken = in_words(spaces.observation), in_words(spaces.action)
        what = f"a table has no row for each of {shown}, or no column for each of {taken}"
        raise UnsupportedError(what, where="data.env", do="Choose a finite world (gridworld), or a network's method.")
    return num_states, num_actions


class TableAgent(Agent):
    """What all agents with tables know: which row and column an observation and an action are.

    Args:
        spaces: of a finite world.

    Attributes:
        num_states: S.
        num_actions: A.
    """

    def __init__(self, spaces: Spaces) -> None:
        super().__init__(spaces)
        self.num_states, self.num_actions = sizes(spaces)
        self.first_state, self.first_action = spaces.first_state, spaces.first_action

    def rows(self, observations: Tensor) -> np.ndarray:
        """The states that observations are, counted from 0."""
        return observations.cpu().numpy().astype(np.int64, copy=False) - self.first_state

    def columns(self, actions: Tensor) -> np.ndarray:
        """The actions, counted from 0."""
        return actions.cpu().numpy().astype(np.int64, copy=False) - self.first_action

    def choice(self, columns: np.ndarray) -> Choice:
        """Actions counted from 0, as the environment counts them."""
        return Choice(torch.from_numpy(columns.astype(np.int64, copy=False) + self.first_action))


class ActionTable(TableAgent):
    """An agent that knows what each action is worth in each state, and takes the best but for a share epsilon.

    Attributes:
        q: what each action is worth, ``[S, A]``.
        visits: how often each was learnt from, ``[S, A]`` int64.
        epsilon: the share of actions drawn from all alike, where it explores.
    """

    def __init__(self, spaces: Spaces, initial: float = 0.0, epsilon: float = 0.0) -> None:
        super().__init__(spaces)
        self.q = table(self.num_states, self.num_actions)
        self.q.fill_(initial)
        self.visits: Tensor
        self.epsilon: Tensor
        self.register_buffer("visits", torch.zeros(self.num_states, self.num_actions, dtype=torch.int64))
        self.register_buffer("epsilon", torch.tensor(epsilon, dtype=torch.float64))

    def act(self, observations: Tensor, chance: torch.Generator | None) -> Choice:
        """See `Agent`; the first of the best."""
        columns = self.q.numpy()[self.rows(observations)].argmax(-1)
        return self.choice(explored(columns, self.num_actions, float(self.epsilon), chance))

    def values(self, observations: Tensor) -> Float[Tensor, " N"]:
        """What the best action is worth in each state."""
        return torch.from_numpy(self.q.numpy()[self.rows(observations)].max(-1)).float()


class PolicyTable(TableAgent):
    """An agent whose policy is given, and which keeps what each state is worth under it.

    Args:
        spaces: of a finite world.
        policy: the chance of each action in each state, ``[S, A]``.

    Attributes:
        policy: that.
        v: what each state is worth, ``[S]``.
        visits: how often each was learnt from, ``[S]`` int64.
    """

    def __init__(self, spaces: Spaces, policy: Float[Tensor, "S A"]) -> None:
        super().__init__(spaces)
        self.policy, self.v = table(*policy.shape), table(self.num_states)
        self.policy.copy_(policy)
        self.visits: Tensor
        self.register_buffer("visits", torch.zeros(self.num_states, dtype=torch.int64))

    def act(self, observations: Tensor, chance: torch.Generator | None) -> Choice:
        """See `Agent`."""
        return self.choice(drawn(self.policy.numpy()[self.rows(observations)], chance))

    def values(self, observations: Tensor) -> Float[Tensor, " N"]:
        """What each state is worth."""
        return torch.from_numpy(self.v.numpy()[self.rows(observations)]).float()


class PlanningTable(TableAgent):
    """An agent that plans: what states and actions are worth, and what it would do.

    Attributes:
        v: what each state is worth, ``[S]``.
        q: what each action is worth when what follows is worth `v`, ``[S, A]``.
        policy: the action of each state, ``[S]`` int64.
    """

    def __init__(self, spaces: Spaces) -> None:
        super().__init__(spaces)
        self.v, self.q = table(self.num_states), table(self.num_states, self.num_actions)
        self.policy: Tensor
        self.register_buffer("policy", torch.zeros(self.num_states, dtype=torch.int64))
        self._equations: Bellman | None = None

    def equations(self, world: World, gamma: float) -> Bellman:
        """The world's, made once for as long as it is the same."""
        known = self._equations
        if known is None or known.world is not world or known.gamma != gamma:
            known = self._equations = Bellman(world, gamma)
        return known

    def act(self, observations: Tensor, chance: torch.Generator | None) -> Choice:
        """See `Agent`; it does not explore."""
        return self.choice(self.policy.numpy()[self.rows(observations)])

    def values(self, observations: Tensor) -> Float[Tensor, " N"]:
        """What each state is worth."""
        return torch.from_numpy(self.v.numpy()[self.rows(observations)]).float()


def drawn(chances: np.ndarray, chance: torch.Generator | None) -> np.ndarray:
    """An action each from chances ``[N, A]``; the likeliest, the first of equals, without anything to draw by."""
    if chance is None:
        return chances.argmax(-1)
    uniform = torch.rand(len(chances), 1, generator=chance, dtype=torch.float64).numpy()
    below = chances.cumsum(-1)
    return np.minimum((uniform * below[:, -1:] >= below).sum(-1), chances.shape[-1] - 1)


def explored(columns: np.ndarray, num_actions: int, epsilon: float, chance: torch.Generator | None) -> np.ndarray:
    """Actions ``[N]``, but for a share epsilon drawn from all alike; as they are without anything to draw by."""
    if chance is None or epsilon <= 0:
        return columns
    uniform = torch.rand(2, len(columns), generator=chance, dtype=torch.float64).numpy()
    return np.where(uniform[0] < epsilon, (uniform[1] * num_actions).astype(np.int64), columns)


def fixed_policy(actions: tuple[int, ...], epsilon: float, num_states: int, num_actions: int) -> Float[Tensor, "S A"]:
    """A policy by the action of each state and a share epsilon drawn from all alike; no actions: all alike.

    Raises:
        UnsupportedError: when there is not one action for each state, or one that does not exist.
    """
    if not actions:
        return torch.full((num_states, num_actions), 1 / num_actions, dtype=torch.float64)
    if len(actions) != num_states or not all(0 <= action < num_actions for action in actions):
        what = f"{len(actions)} actions are given for {num_states} states with {num_actions} actions each"
        raise UnsupportedError(what, where="method.policy", do=f"Give each state one from 0 to {num_actions - 1}.")
    policy = torch.full((num_states, num_actions), epsilon / num_actions, dtype=torch.float64)
    policy[torch.arange(num_states), torch.tensor(actions)] += 1 - epsilon
    return policy


class FiniteMethod(Discounting):
    """A method for finite worlds that keeps what it learned in tables."""

    level: ClassVar[Level] = "table"
    goal: ClassVar[Goal] = "control"
    acts_in: ClassVar[frozenset[str]] = frozenset({"discrete"})
    finite: ClassVar[bool] = True

    gamma: float = Field(0.9, ge=0, le=1)
    """What a reward one step later is worth."""
