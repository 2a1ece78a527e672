from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

from danlu.acting import World
from danlu.errors import RecipeError
from danlu.world import GRIDWORLD
from danlu.world.gridworld import GridWorld

BOOK = "5.8 5.6 6.2 6.5 5.8 / 6.5 7.2 8 7.2 6.5 / 7.2 8 10 8 7.2 / 8 10 10 10 8 / 7.2 9 10 9 8.1"


def expected_next(world: World, values: np.ndarray) -> np.ndarray:
    if world.chances is None:
        return world.moves @ values
    return np.asarray((world.chances * values[world.moves]).sum(-1))


def best_values(world: World, gamma: float, sweeps: int = 400) -> np.ndarray:
    """Value iteration."""
    values = np.zeros(world.num_states)
    for _ in range(sweeps):
        values = np.where(world.terminal, 0, (world.rewards + gamma * expected_next(world, values)).max(1))
    return values


VARIANTS: list[dict[str, Any]] = [
    {},
    {"size": [3, 4]},
    {"size": (1, 2), "absorbing": True, "starts": [[0, 0]]},
    {"slip": 0.3, "absorbing": True},
    {"forbidden": [], "target": [0, 0], "reward_step": -0.5, "max_steps": 50},
    {"size": [30, 7], "forbidden": [[2, 2]], "starts": [[0, 0], [29, 6]]},
]


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("mode", ["rgb_array", "ansi"])
def test_gymnasiums_checker_has_nothing_to_say(options: dict[str, Any], mode: str) -> None:
    env = gymnasium.make(GRIDWORLD, render_mode=mode, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*render fps.*")
        check_env(env.unwrapped)


@pytest.mark.parametrize("dense", [True, False])
def test_best_values_are_those_printed_in_the_book(dense: bool) -> None:
    printed = np.array([[float(v) for v in row.split()] for row in BOOK.split("/")])
    values = best_values(GridWorld().world(dense=dense), 0.9)
    np.testing.assert_array_equal(values.reshape(5, 5).round(1), printed)


def test_a_dear_forbidden_cell_is_walked_around_as_in_the_book() -> None:
    values = best_values(GridWorld(reward_forbidden=-10).world(), 0.9)
    np.testing.assert_array_equal(values[:5].round(1), [3.5, 3.9, 4.3, 4.8, 5.3])


@given(
    a=st.floats(0.1, 10),
    b=st.floats(-5, 5),
    gamma=st.floats(0.1, 0.9),
    slip=st.sampled_from([0.0, 0.2]),
)
def test_values_follow_an_affine_change_of_all_rewards(a: float, b: float, gamma: float, slip: float) -> None:
    names = {"reward_boundary": -1.0, "reward_forbidden": -3.0, "reward_target": 1.0, "reward_step": 0.0}
    before = best_values(GridWorld(**names, slip=slip).world(), gamma)  # type: ignore[arg-type]
    changed = {name: a * r + b for name, r in names.items()}
    after = best_values(GridWorld(**changed, slip=slip).world(), gamma)  # type: ignore[arg-type]
    np.testing.assert_allclose(after, a * before + b / (1 - gamma), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"absorbing": True}, {"size": [3, 3], "reward_step": -0.1, "slip": 0.5}])
def test_the_model_is_what_steps_do(options: dict[str, Any]) -> None:
    env = GridWorld(**options)
    world, sparse = env.world(dense=True), env.world(dense=False)
    num, tries = world.num_states, 300 if options.get("slip") else 1
    env.reset(seed=1)
    for state in range(num):
        for action in range(5):
            seen, total = np.zeros(num), 0.0
            for _ in range(tries):
                env.reset(options={"state": state})
                following, reward, ended, _, _ = env.step(action)
                seen[following] += 1 / tries
                total += reward / tries
                assert ended == world.terminal[following]
            assert np.abs(seen - world.moves[state, action]).max() < (0.13 if tries > 1 else 1e-12)
            assert abs(total - world.rewards[state, action]) < (0.25 if tries > 1 else 1e-12)
    assert sparse.chances is not None
    spread = np.zeros_like(world.moves)
    for k in range(sparse.moves.shape[2]):
        np.add.at(spread, (*np.ogrid[:num, :5], sparse.moves[..., k]), sparse.chances[..., k])
    np.testing.assert_allclose(spread, world.moves)
    np.testing.assert_allclose(world.moves.sum(-1), 1)


def test_a_large_grid_has_a_sparse_model() -> None:
    world = GridWorld((1000, 1000), forbidden=[(3, 3)]).world()
    assert world.moves.shape == (1_000_000, 5, 1)
    assert world.rewards[3 * 1000 + 2, 1] == -1  # into the forbidden cell
    assert world.moves[0, 2, 0] == 1000
    assert world.moves[0, 0, 0] == 0


def test_chance_follows_the_seed() -> None:
    def walk(seed: int) -> list[int]:
        env = GridWorld(slip=0.5)
        first, _ = env.reset(seed=seed)
        return [first, *(env.step(1)[0] for _ in range(30))]

    assert walk(3) == walk(3)
    assert walk(3) != walk(4)


def test_an_episode_begins_where_it_may() -> None:
    env = GridWorld(starts=[(0, 0), (4, 4)])
    assert {env.reset(seed=seed)[0] for seed in range(20)} == {0, 24}
    anywhere = GridWorld(absorbing=True)
    assert {anywhere.reset(seed=seed)[0] for seed in range(400)} == set(range(25)) - {17}


def test_the_picture_shows_values_and_policy() -> None:
    env = GridWorld(render_mode="rgb_array")
    env.reset(seed=0, options={"state": 0})
    plain = env.render()
    assert plain.shape[0] == plain.shape[1]
    assert plain.dtype == np.uint8
    env.set_overlay(policy=np.full(25, 1))
    arrows = env.render()
    env.set_overlay(values=np.arange(25.0))
    shaded = env.render()
    side = len(plain) // 5
    cell = np.s_[side : 2 * side, :side]
    assert (arrows[cell] != plain[cell]).any()
    assert shaded[cell].mean() < plain[cell].mean()
    env.step(1)
    assert (env.render()[:side, :side] != shaded[:side, :side]).any()  # the agent left
    env.set_overlay()
    env.reset(seed=0, options={"state": 0})
    np.testing.assert_array_equal(env.render(), plain)


def test_the_text_shows_where_all_is() -> None:
    env = GridWorld(render_mode="ansi")
    env.reset(seed=0, options={"state": 0})
    lines = env.render().splitlines()
    assert lines[0].split() == ["@", ".", ".", ".", "."]
    assert lines[3].split() == [".", "#", "T", "#", "."]
    env.set_overlay(policy=np.full(25, 4))
    assert env.render().count("○") == 25


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": [5]}, "rows and columns"),
        ({"size": [0, 5]}, "rows and columns"),
        ({"forbidden": [[5, 0]]}, r"no cell \[5, 0\]"),
        ({"target": [0, 0, 0]}, "pairs of a row and a column"),
        ({"forbidden": [[0, 0]], "target": [0, 0]}, "is a forbidden cell"),
        ({"slip": 1.5}, "between 0 and 1"),
        ({"reward_step": float("nan")}, "rewards are numbers"),
        ({"starts": []}, "nowhere to start"),
        ({"starts": [[3, 2]], "absorbing": True}, "cannot start where it ends"),
        ({"max_steps": 0}, "at least one step"),
    ],
)
def test_what_cannot_be_meant_is_said(options: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        GridWorld(**options)


def test_a_wrong_state_action_or_overlay_is_said() -> None:
    env = GridWorld()
    with pytest.raises(RecipeError, match="cells 0 to 24"):
        env.reset(options={"state": 25})
    env.reset(seed=0)
    with pytest.raises(RecipeError, match="actions are 0 to 4"):
        env.step(-1)
    with pytest.raises(RecipeError, match="25 cells"):
        env.set_overlay(values=np.zeros(24))
    with pytest.raises(RecipeError, match="25 cells"):
        env.set_overlay(policy=np.zeros((25, 4)))
