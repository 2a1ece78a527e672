from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest

from danlu.random import fold
from danlu.world.dynamics import Vectorized, exact
from danlu.world.environments import Environments
from danlu.world.grids import Grids
from danlu.world.stepping import Simulators

KNOWN: list[tuple[str, dict[str, Any], int]] = [
    ("CartPole-v1", {}, 1500),
    ("CartPole-v1", {"sutton_barto_reward": True}, 300),
    ("Pendulum-v1", {}, 700),
    ("Pendulum-v1", {"g": 9.81}, 300),
    ("MountainCar-v0", {}, 700),
    ("Acrobot-v1", {}, 1100),
    ("gridworld", {}, 300),
    ("FrozenLake-v1", {}, 300),
    ("FrozenLake-v1", {"map_name": "8x8", "is_slippery": False}, 300),
    ("CliffWalking-v1", {"is_slippery": True}, 200),
    ("Taxi-v4", {"is_rainy": True}, 250),
    ("gridworld", {"slip": 0.3, "absorbing": True, "max_steps": 20}, 500),
]


def drive(env: gymnasium.Env[Any, Any], seeds: Iterator[int]) -> Iterator[tuple[Any, ...]]:
    """One environment as Gymnasium has it, begun again where it ends."""
    shown, _ = env.reset(seed=next(seeds))
    action = yield (shown,)
    while True:
        following, reward, terminated, truncated, _ = env.step(action)
        shown = env.reset(seed=next(seeds))[0] if terminated or truncated else following
        action = yield shown, following, reward, terminated, truncated


@pytest.mark.parametrize(("name", "options", "steps"), KNOWN)
@pytest.mark.parametrize("num_envs", [1, 5, 7])
def test_many_at_once_are_gymnasiums_to_the_bit(name: str, options: dict[str, Any], steps: int, num_envs: int) -> None:
    environments = Environments(name, num_envs, seed=11, options=options)
    assert isinstance(environments._stepper, Vectorized) or num_envs < 5 or not exact()
    drivers = []
    for index in range(num_envs):
        seeds = (fold(11, index, episode) % 2**31 for episode in range(10**6))
        full = "danlu/GridWorld-v0" if name == "gridworld" else name
        drivers.append(drive(gymnasium.make(full, disable_env_checker=True, **options), seeds))
    shown = environments.reset()
    for index, driver in enumerate(drivers):
        np.testing.assert_array_equal(shown[index], next(driver)[0])
    chance = np.random.Generator(np.random.PCG64(5))
    space, ends = environments.spaces.action, 0
    for _ in range(steps):
        if isinstance(space, gymnasium.spaces.Box):
            actions = chance.uniform(space.low, space.high, (num_envs, *space.shape)).astype(np.float32)
        else:
            actions = chance.integers(space.n, size=num_envs)  # type: ignore[attr-defined]
        stepped = environments.step(actions)
        ends += len(stepped.ended)
        for index, driver in enumerate(drivers):
            each = driver.send(actions[index] if isinstance(space, gymnasium.spaces.Box) else int(actions[index]))
            mine = (stepped.observations, stepped.following, stepped.rewards, stepped.terminated, stepped.truncated)
            for ours, theirs in zip(mine, each, strict=True):
                assert ours[index].tobytes() == np.asarray(theirs, ours.dtype).tobytes()
            assert stepped.observations.dtype == np.asarray(each[0]).dtype
    endless = name == "CliffWalking-v1" or (name == "gridworld" and not options)
    assert ends or endless  # or else the beginning of episodes was not compared


def test_a_mountain_is_climbed_as_in_gymnasium() -> None:
    """Pushing the way it rolls reaches the top, which chance does not."""
    environments = Environments("MountainCar-v0", 3, seed=1)
    plain = Environments("MountainCar-v0", 3, seed=1, vectorize=False)
    shown, tops = environments.reset(), 0
    np.testing.assert_array_equal(shown, plain.reset())
    for _ in range(400):
        actions = np.where(shown[:, 1] >= 0, 2, 0)
        one, other = environments.step(actions), plain.step(actions)
        np.testing.assert_array_equal(one.observations, other.observations)
        np.testing.assert_array_equal(one.terminated, other.terminated)
        shown, tops = one.observations, tops + int(one.terminated.sum())
    assert tops >= 3


def test_a_limit_of_ones_own_cuts_episodes() -> None:
    for vectorize in (True, False):
        environments = Environments("CartPole-v1", 2, time_limit=3, vectorize=vectorize)
        environments.reset()
        steps = [environments.step(np.array([0, 1])) for _ in range(3)]
        assert [s.truncated.tolist() for s in steps] == [[False] * 2, [False] * 2, [True] * 2]
        assert [episode.length for episode in steps[-1].ended] == [3, 3]
        assert (steps[-1].following != steps[-1].observations).any(1).all()


def test_options_that_are_not_known_here_are_gymnasiums_matter() -> None:
    assert not isinstance(Environments("CartPole-v1", options={"render_mode": None})._stepper, Vectorized)
    assert isinstance(Environments("gridworld", workers=2)._stepper, Grids)


def test_where_sines_of_many_differ_environments_are_stepped_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(Environments("Pendulum-v1", 5)._stepper, Vectorized) == exact()
    monkeypatch.setattr("danlu.world.starting.exact", lambda: False)
    assert isinstance(Environments("Pendulum-v1", 5)._stepper, Simulators)
