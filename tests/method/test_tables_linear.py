"""Linear features: what they are, the fixed point of TD, and tables as their special case."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from danlu.errors import UnsupportedError
from danlu.method.exploring import Exploring
from danlu.method.features import FeatureMap, Features
from danlu.method.sarsa import Sarsa
from danlu.method.sarsa_linear import SarsaLinear
from danlu.method.step_size import StepSize
from danlu.method.td0 import TD0
from danlu.method.td_linear import TDLinear
from danlu.spaces import Spaces
from experience_of import ExperienceOf, book_grid, corridor, some_world
from method.turns import taught

CUBE = Box(np.array([-1.0, 0.0]), np.array([1.0, 4.0]), dtype=np.float64)


def test_polynomials_are_products_of_powers() -> None:
    phi = FeatureMap(Features(kind="polynomial", order=2), CUBE)
    x, y = 0.5, -0.25
    point = np.array([[0.5, 1.5]])  # the middle is 0 and the bounds are -1 and 1
    assert sorted(phi(point)[0]) == pytest.approx(sorted([1, x, y, x * x, x * y, y * y]))
    assert phi.num == 6


def test_fouriers_are_cosines() -> None:
    phi = FeatureMap(Features(kind="fourier", order=2), CUBE)
    seen = phi(np.array([[0.0, 1.0]]))[0]
    each = [np.cos(np.pi * (i * 0.5 + j * 0.25)) for i in range(3) for j in range(3)]
    assert sorted(seen) == pytest.approx(sorted(each), abs=1e-12)


def test_tiles_are_one_of_each_tiling_and_near_points_share_them() -> None:
    phi = FeatureMap(Features(kind="tile", order=4, tilings=8), CUBE)
    points = np.random.default_rng(0).uniform([-1, 0], [1, 4], size=(200, 2))
    seen = phi(points)
    assert seen.shape == (200, phi.num)
    assert set(np.unique(seen)) == {0.0, 1.0}
    assert (seen.sum(1) == 8).all()
    shared = phi(np.array([[0.0, 2.0], [0.1, 2.0], [0.3, 2.0], [0.9, 2.0]])) @ phi(np.array([[0.0, 2.0]]))[0]
    assert shared[0] == 8 > shared[1] > shared[2] > shared[3] == 0


def test_a_states_number_is_a_place_on_a_grid() -> None:
    grid = FeatureMap(Features(kind="polynomial", order=1, shape=(3, 5)), Discrete(15))
    assert grid.points(np.array([0, 4, 10, 14, 7])).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0.5, 0.5]]
    late = FeatureMap(Features(kind="one_hot"), Discrete(4, start=3))
    assert late(np.array([3, 6])).tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]
    several = FeatureMap(Features(kind="one_hot"), MultiDiscrete([2, 3]))
    assert several(np.array([[1, 2], [0, 1]])).argmax(1).tolist() == [5, 1]


def test_what_has_no_features_is_refused() -> None:
    endless = Box(-np.inf, np.inf, (2,))
    for config, space in [(Features(), endless), (Features(kind="one_hot"), CUBE)]:
        with pytest.raises(UnsupportedError, match="features"):
            FeatureMap(config, space)
    with pytest.raises(UnsupportedError, match="has not 15 states"):
        FeatureMap(Features(shape=(3, 4)), Discrete(15))
    with pytest.raises(UnsupportedError, match="order"):
        FeatureMap(Features(order=9), Box(0.0, 1.0, (12,)))
    with pytest.raises(UnsupportedError, match="policy"):
        TDLinear(policy=(0, 1)).agent(Spaces(CUBE, Discrete(2)), None, 0)


@pytest.mark.parametrize("kind", ["polynomial", "fourier"])
def test_td_comes_to_its_fixed_point(kind: str) -> None:
    """A w = b from the model and the share of time spent in each state, by numpy."""
    world, gamma = some_world(11, num_states=8), 0.6
    moves, rewards = world.moves.mean(1), world.rewards.mean(1)
    shares = np.linalg.matrix_power(moves, 10_000)[0]
    features = Features(kind=kind, order=2)
    phi = FeatureMap(features, Discrete(8))(np.arange(8))
    weighed = phi.T * shares
    fixed = np.linalg.solve(weighed @ (np.eye(8) - gamma * moves) @ phi, weighed @ rewards)
    method = TDLinear(
        gamma=gamma, features=features, steps=6000, step_size=StepSize(kind="polynomial", start=1.0, power=0.7)
    )
    agent, told = taught(method, ExperienceOf(world, num_envs=2), 5)
    exact = np.linalg.solve(np.eye(8) - gamma * moves, rewards)
    assert np.abs(phi @ fixed - exact).max() > 0.1, "the features cannot say it all"
    np.testing.assert_allclose(phi @ agent.w.numpy(), phi @ fixed, atol=0.06)
    np.testing.assert_allclose(agent.values(torch.arange(8)), phi @ agent.w.numpy(), atol=1e-5)
    assert int(agent.k) == 60_000
    assert told[-1]["step_size"] < 1e-3


def test_a_feature_for_each_state_is_a_table() -> None:
    fields = {"steps": 200, "step_size": StepSize(start=0.2)}
    policy = {"policy": (0, 1, 2, 0, 1, 2), "epsilon": 0.5}
    linear, _ = taught(
        TDLinear(features=Features(kind="one_hot"), **fields, **policy), ExperienceOf(some_world(12, ends=1)), 3
    )
    plain, _ = taught(TD0(**fields, **policy), ExperienceOf(some_world(12, ends=1)), 3)
    assert torch.equal(linear.w, plain.v)
    assert float(plain.v.abs().min()) == 0.0 < float(plain.v.abs().max())


def test_sarsa_with_a_feature_for_each_state_is_sarsa() -> None:
    fields = {"steps": 50, "step_size": StepSize(start=0.2), "epsilon": Exploring(start=0.5, end=0.1)}
    for world, limit in ((some_world(13, ends=1), None), (book_grid(), 9)):
        linear, told = taught(
            SarsaLinear(features=Features(kind="one_hot"), **fields), ExperienceOf(world, num_envs=2, limit=limit), 4
        )
        plain, told_plain = taught(Sarsa(**fields), ExperienceOf(world, num_envs=2, limit=limit), 4)
        assert torch.equal(linear.w, plain.q)
        assert [t["loss"] for t in told] == [t["loss"] for t in told_plain]


def test_sarsa_with_few_features_finds_a_way() -> None:
    world = book_grid(forbidden=-1.0)
    method = SarsaLinear(
        features=Features(kind="fourier", order=4, shape=(5, 5)),
        steps=500,
        step_size=StepSize(start=0.02),
        epsilon=Exploring(start=0.3, end=None),
    )
    _, told = taught(method, ExperienceOf(world, num_envs=4, limit=100), 15)
    assert np.mean([t["reward"] for t in told[-3:]]) > float(world.rewards.mean()) + 0.5


def test_what_features_say_of_the_end_is_not_asked() -> None:
    method = TDLinear(policy=(1,) * 5, features=Features(kind="polynomial", order=1), step_size=StepSize(start=0.3))
    agent, _ = taught(method, ExperienceOf(corridor(), begins=(3,)), 1)
    values = agent.values(torch.arange(5))
    assert values is not None
    assert float(values[3]) == pytest.approx(-1.0, abs=1e-6)
    assert abs(float(values[4])) > 0.1
