"""All there is to know of a finite world, where an environment says it: a grid world, or one of Gymnasium's toys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete

from danlu.acting import World
from danlu.errors import RecipeError, UnsupportedError
from danlu.world.gridworld import DENSE, GridWorld
from danlu.world.making import make


def world_of(env_id: str, options: Mapping[str, Any] | None = None) -> World:
    """All there is to know of a finite environment.

    Args:
        env_id: see `danlu.world.making.find`.
        options: what the environment takes.

    Raises:
        UnsupportedError: where it does not say.
    """
    made = make(env_id, options)
    env = made.env.unwrapped
    try:
        if isinstance(env, GridWorld):
            return env.world()
        table = getattr(env, "P", None)
        finite = isinstance(env.observation_space, Discrete) and isinstance(env.action_space, Discrete)
        if not isinstance(table, Mapping) or not finite:
            what = f"'{made.name}' does not say what its actions lead to, and this method must know"
            do = "Choose a world that does (gridworld, FrozenLake-v1, Taxi-v4), or a method that learns from steps."
            raise UnsupportedError(what, where="data.env", do=do)
        return _from_table(made.name, table, getattr(env, "initial_state_distrib", None))
    finally:
        env.close()


def map_of(env_id: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """How a world lies on a map, as JSON, where it is a grid: "height", "width", "cells"; else nothing."""
    made = make(env_id, options)
    env = made.env.unwrapped
    if not isinstance(env, GridWorld):
        env.close()
        return {}
    layout = env.layout
    height, width = layout.size
    cells = {"forbidden": np.flatnonzero(layout.forbidden).tolist(), "target": int(layout.target)}
    return {"height": height, "width": width, "cells": cells}


def start_at(env: gymnasium.Env[Any, Any], state: int, *, seed: int) -> int:
    """Begin an episode of a finite environment in a state.

    Args:
        env: a grid world, or one of Gymnasium's toys.
        state: where.
        seed: of what is random after that.

    Returns:
        the state.

    Raises:
        UnsupportedError: where it cannot be put anywhere.
        RecipeError: where there is no such state.
    """
    space, bare = env.observation_space, env.unwrapped
    if not isinstance(space, Discrete):
        raise UnsupportedError(f"an episode cannot begin in a chosen one of the states {space}", where="data.env")
    if not space.contains(state):
        raise RecipeError(f"there is no state {state} in {space}", where="data.env")
    if isinstance(bare, GridWorld):
        return int(env.reset(seed=seed, options={"state": int(state)})[0])
    if not isinstance(getattr(bare, "P", None), Mapping) or not isinstance(getattr(bare, "s", 0), int | np.integer):
        raise UnsupportedError(f"{bare} cannot be put into a chosen state", where="data.env")
    env.reset(seed=seed)
    vars(bare)["s"] = int(state)
    return int(state)


def _from_table(name: str, table: Mapping[int, Any], starts: Any) -> World:
    """A world from ``table[state][action]``, a list of (chance, next state, reward, whether the episode ends)."""
    states, actions = len(table), len(table[0])
    rows = [(s, a, k, *entry) for s in range(states) for a in range(actions) for k, entry in enumerate(table[s][a])]
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    state, action, place = columns[:3]
    chance, following, reward, ends = (
        columns[3].astype(float),
        columns[4],
        columns[5].astype(float),
        columns[6].astype(bool),
    )
    happens = chance > 0
    terminal = np.zeros(states, bool)
    terminal[following[ends & happens]] = True
    inside = _reached(states, state[happens], following[happens], terminal, starts)[state] & ~terminal[state]
    odd = happens & inside & terminal[following] & ~ends
    if odd.any():
        s, a = state[odd][0], action[odd][0]
        what = (
            f"'{name}' ends an episode in state {following[odd][0]} at times only (not after action {a} in state {s})"
        )
        raise UnsupportedError(what, where="data.env", do="Choose a method that learns from steps.")
    rewards = np.zeros((states, actions))
    np.add.at(rewards, (state, action), chance * reward)
    if states <= DENSE:
        moves = np.zeros((states, actions, states))
        np.add.at(moves, (state, action, following), chance)
        return World(moves, None, rewards, terminal)
    sparse = np.zeros((states, actions, int(place.max()) + 1), np.int64)
    chances = np.zeros(sparse.shape)
    sparse[state, action, place] = following
    chances[state, action, place] = chance
    return World(sparse, chances, rewards, terminal)


def _reached(states: int, state: np.ndarray, following: np.ndarray, terminal: np.ndarray, starts: Any) -> np.ndarray:
    """The states an episode can come to, ``[S]``; all where it is not known where it starts."""
    if starts is None:
        return np.ones(states, bool)
    seen = np.asarray(starts) > 0
    while True:
        goes = seen[state] & ~terminal[state]
        more = seen.copy()
        more[following[goes]] = True
        if (more == seen).all():
            return seen
        seen = more
