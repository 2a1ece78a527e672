from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from danlu.errors import UnsupportedError
from danlu.world.finite import start_at, world_of
from danlu.world.making import make


@pytest.mark.parametrize(
    ("name", "options"),
    [("FrozenLake-v1", {}), ("FrozenLake-v1", {"is_slippery": False}), ("CliffWalking-v1", {}), ("Taxi-v4", {})],
)
def test_a_toys_world_is_its_table(name: str, options: dict[str, Any]) -> None:
    world = world_of(name, options)
    env = gymnasium.make(name, **options)
    table = env.unwrapped.P  # type: ignore[attr-defined]
    values = np.random.Generator(np.random.PCG64(0)).normal(size=len(table))
    reached = {s for s in range(len(table)) if env.unwrapped.initial_state_distrib[s] > 0}  # type: ignore[attr-defined]
    while more := {n for s in reached for a in table[s] for p, n, _, end in table[s][a] if p and not end} - reached:
        reached |= more
    for state in reached - set(np.flatnonzero(world.terminal)):
        for action, entries in table[state].items():
            told = sum(p * (r + 0.9 * values[n] * (not end)) for p, n, r, end in entries)
            future = np.where(world.terminal, 0, values)
            if world.chances is None:
                following = world.moves[state, action] @ future
            else:
                following = (world.chances[state, action] * future[world.moves[state, action]]).sum()
            assert world.rewards[state, action] + 0.9 * following == pytest.approx(told)


def test_frozen_lake_ends_in_holes_and_at_the_goal() -> None:
    world = world_of("FrozenLake-v1")
    desc = gymnasium.make("FrozenLake-v1").unwrapped.desc  # type: ignore[attr-defined]
    np.testing.assert_array_equal(world.terminal, np.isin(desc.ravel(), [b"H", b"G"]))
    np.testing.assert_allclose(world.moves.sum(-1), 1)


def test_a_grid_worlds_model_is_its_own() -> None:
    world = world_of("gridworld", {"size": [2, 3]})
    assert world.moves.shape == (6, 5, 6)


def test_a_world_that_ends_in_a_state_at_times_only_is_refused() -> None:
    from danlu.world.finite import _from_table

    table = {
        0: {0: [(1.0, 1, 0.0, True)], 1: [(1.0, 1, 0.0, False)]},
        1: {0: [(1.0, 0, 0.0, False)], 1: [(1.0, 1, 0.0, False)]},
    }
    with pytest.raises(UnsupportedError, match="ends an episode in state 1 at times only"):
        _from_table("odd", table, None)


@pytest.mark.parametrize("name", ["CartPole-v1", "Blackjack-v1"])
def test_a_world_that_does_not_say_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match="does not say what its actions lead to"):
        world_of(name)


@pytest.mark.parametrize("name", ["gridworld", "FrozenLake-v1", "Taxi-v4"])
def test_an_episode_begins_in_a_chosen_state(name: str) -> None:
    env = make(name, {"is_slippery": False} if name == "FrozenLake-v1" else {}).env
    world = world_of(name, {"is_slippery": False} if name == "FrozenLake-v1" else {})
    for state in range(10):
        assert start_at(env, state, seed=5) == state
        following, *_ = env.step(2)
        if world.chances is None:
            assert world.moves[state, 2, following] > 0
        else:
            assert following in world.moves[state, 2]


def test_a_state_cannot_be_chosen_among_endlessly_many() -> None:
    with pytest.raises(UnsupportedError, match="cannot begin in a chosen one"):
        start_at(make("CartPole-v1").env, 3, seed=0)
    with pytest.raises(UnsupportedError, match="cannot begin in a chosen one|cannot be put"):
        start_at(make("Blackjack-v1").env, 3, seed=0)
