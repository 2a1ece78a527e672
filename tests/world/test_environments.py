from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from danlu.errors import CheckpointError
from danlu.random import fold
from danlu.world.environments import Environments, Stepped

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("CartPole-v1", {}),
    ("Pendulum-v1", {"normalize_observations": True, "normalize_rewards": True, "gamma": 0.9}),
    ("CartPole-v1", {"vectorize": False, "normalize_observations": True}),
    ("FrozenLake-v1", {}),
    ("Acrobot-v1", {}),
    ("Taxi-v4", {"vectorize": False}),
    ("faulty_environments:Wander-v0", {"normalize_rewards": True, "gamma": 0.99}),
    ("gridworld", {"options": {"slip": 0.2}}),
    ("gridworld", {"vectorize": False, "options": {"slip": 0.2, "max_steps": 30}}),
    ("faulty_environments:Wander-v0", {"workers": 2, "normalize_observations": True}),
]


def drawn(environments: Environments, steps: int, seed: int) -> Iterator[np.ndarray]:
    chance, space = np.random.Generator(np.random.PCG64(seed)), environments.spaces.action
    for _ in range(steps):
        if isinstance(space, Box):
            shape = (environments.num_envs, *space.shape)
            yield chance.uniform(space.low, space.high, shape).astype(np.float32)
        else:
            yield chance.integers(space.n, size=environments.num_envs)  # type: ignore[attr-defined]


def print_of(stepped: Stepped) -> tuple[Any, ...]:
    arrays = (stepped.observations, stepped.following, stepped.rewards, stepped.terminated, stepped.truncated)
    return *(array.tobytes() for array in arrays), stepped.ended


@pytest.mark.parametrize(("name", "settings"), KINDS)
def test_going_on_from_a_saved_state_is_going_on_to_the_bit(name: str, settings: dict[str, Any]) -> None:
    def fresh() -> Environments:
        return Environments(name, 3, seed=5, **settings)

    with fresh() as one:
        one.reset()
        for actions in drawn(one, 70, 1):
            one.step(actions)
        saved = json.loads(json.dumps(one.state_dict()))
        now = one.observations.tobytes()
        went = [print_of(one.step(actions)) for actions in drawn(one, 60, 2)]
        assert one.state_dict() != saved
    with fresh() as other:
        other.load_state_dict(saved)
        assert other.state_dict() == saved
        assert other.observations.tobytes() == now
        assert [print_of(other.step(actions)) for actions in drawn(other, 60, 2)] == went


def test_episodes_longer_than_the_history_began_with_are_kept() -> None:
    settings: dict[str, Any] = {"seed": 2, "time_limit": 700, "vectorize": False}
    with Environments("Pendulum-v1", 2, **settings) as one, Environments("Pendulum-v1", 2, **settings) as other:
        one.reset()
        for actions in drawn(one, 1250, 1):
            one.step(actions)
        saved = one.state_dict()
        other.load_state_dict(saved)
        assert other.state_dict() == saved
        actions = next(drawn(one, 1, 9))
        assert print_of(one.step(actions)) == print_of(other.step(actions))


def test_what_was_done_in_episodes_that_ended_is_forgotten() -> None:
    environments = Environments("CartPole-v1", 2, seed=1)
    for actions in drawn(environments, 2000, 1):
        environments.step(actions)
    saved = environments.state_dict()
    assert [each["shape"][0] for each in saved["actions"]] == saved["lengths"]
    assert environments._history is not None
    assert len(environments._history._rows) < 600


@pytest.mark.parametrize("settings", [{"vectorize": False}, {"workers": 2}])
def test_results_do_not_depend_on_how_environments_are_stepped(settings: dict[str, Any]) -> None:
    with Environments("CartPole-v1", 3, seed=3) as plain, Environments("CartPole-v1", 3, seed=3, **settings) as other:
        assert plain.reset().tobytes() == other.reset().tobytes()
        for actions in drawn(plain, 150, 4):
            assert print_of(plain.step(actions)) == print_of(other.step(actions))
        other.load_state_dict(plain.state_dict())  # and what was saved one way goes on another
        for actions in drawn(plain, 20, 5):
            assert print_of(plain.step(actions)) == print_of(other.step(actions))


def test_an_environment_does_not_depend_on_how_many_there_are() -> None:
    few, many = Environments("CartPole-v1", 2, seed=8), Environments("CartPole-v1", 6, seed=8)
    np.testing.assert_array_equal(few.reset(), many.reset()[:2])
    for actions in drawn(many, 100, 1):
        one, other = few.step(actions[:2]), many.step(actions)
        np.testing.assert_array_equal(one.observations, other.observations[:2])


def test_each_episode_has_a_seed_of_its_own() -> None:
    environments = Environments("CartPole-v1", 2, seed=4)
    for episode in range(3):
        shown = environments.reset()
        for index in range(2):
            env = gymnasium.make("CartPole-v1")
            np.testing.assert_array_equal(shown[index], env.reset(seed=fold(4, index, episode) % 2**31)[0])


def test_what_ended_is_told() -> None:
    environments = Environments("CartPole-v1", 2, seed=4)
    environments.reset()
    ended = [(number, e) for number in range(200) for e in environments.step(np.array([0, 0])).ended]
    assert {e.index for _, e in ended} == {0, 1}
    for index in range(2):
        mine = [(number, e) for number, e in ended if e.index == index]
        assert [e.length for _, e in mine] == np.diff([-1, *(number for number, _ in mine)]).tolist()
        assert all(e.rewards == e.length for _, e in mine)


def test_observations_are_normalised_as_gymnasiums() -> None:
    environments = Environments("CartPole-v1", 1, seed=6, normalize_observations=True)
    assert environments.spaces.observation == Box(-np.inf, np.inf, (4,), np.float32)
    theirs = gymnasium.wrappers.NormalizeObservation(gymnasium.make("CartPole-v1"))
    mine = environments.reset()
    np.testing.assert_allclose(mine[0], theirs.reset(seed=fold(6, 0, 0) % 2**31)[0], rtol=1e-4, atol=1e-5)
    episode = 0
    for actions in drawn(environments, 300, 1):
        stepped = environments.step(actions)
        shown, _, terminated, truncated, _ = theirs.step(int(actions[0]))
        np.testing.assert_allclose(stepped.following[0], shown, rtol=1e-3, atol=1e-4)
        if terminated or truncated:
            episode += 1
            shown, _ = theirs.reset(seed=fold(6, 0, episode) % 2**31)
        np.testing.assert_allclose(stepped.observations[0], shown, rtol=1e-3, atol=1e-4)
    assert episode > 3


def test_rewards_are_normalised_as_gymnasiums() -> None:
    def make() -> gymnasium.Env[Any, Any]:
        return gymnasium.make("Pendulum-v1")

    environments = Environments("Pendulum-v1", 3, seed=6, normalize_rewards=True, gamma=0.95)
    vector = SyncVectorEnv([make] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    theirs = gymnasium.wrappers.vector.NormalizeReward(vector, gamma=0.95)
    environments.reset()
    theirs.reset(seed=[fold(6, index, 0) % 2**31 for index in range(3)])  # type: ignore[arg-type]
    for actions in drawn(environments, 199, 1):
        mine = environments.step(actions)
        np.testing.assert_allclose(mine.rewards, theirs.step(actions)[1], rtol=1e-5)
    assert not mine.ended


def test_statistics_of_another_are_used_and_left_alone() -> None:
    train = Environments("Pendulum-v1", 2, seed=1, normalize_observations=True, normalize_rewards=True, gamma=0.9)
    train.reset()
    for actions in drawn(train, 50, 1):
        train.step(actions)
    before = train.statistics.save()
    judge = Environments("Pendulum-v1", 2, seed=9, statistics=train.statistics)
    raw = Environments("Pendulum-v1", 2, seed=9)
    assert judge.spaces == train.spaces
    seen, known = raw.reset(), train.statistics.observations
    assert known is not None
    np.testing.assert_allclose(judge.reset(), (seen - known.mean) / np.sqrt(known.variance), rtol=1e-4, atol=1e-6)
    judge.step(np.zeros((2, 1)))
    assert train.statistics.save() == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.update(env="Pendulum-v1"), "saved with env = 'Pendulum-v1'"),
        (lambda s: s.update(num_envs=4), "saved with num_envs = 4"),
        (lambda s: s.update(seed=4), "saved with seed = 4"),
        (lambda s: s.update(options='{"g": 9}'), "saved with options"),
        (lambda s: s["actions"].pop(), "of other environments"),
        (lambda s: s.update(actions=None), "saved another way"),
        (lambda s: s["actions"][0].update(data="@"), "cannot be read"),
        (lambda s: s["episodes"].__setitem__(0, 7), "another observation"),
    ],
)
def test_a_saved_state_that_does_not_fit_is_said(change: Callable[[dict[str, Any]], None], says: str) -> None:
    one = Environments("CartPole-v1", 2, seed=1)
    one.reset()
    for actions in drawn(one, 5, 1):
        one.step(actions)
    saved = one.state_dict()
    change(saved)
    with pytest.raises(CheckpointError, match=says):
        Environments("CartPole-v1", 2, seed=1).load_state_dict(saved)


def test_an_environment_whose_seed_does_not_say_how_it_goes_is_found_out() -> None:
    one = Environments("faulty_environments:Forgetful-v0", 1)
    one.step(np.zeros((1, 2), np.float32))
    with pytest.raises(
        CheckpointError, match=r"environment 0 of Forgetful-v0 to another observation.*chance of its own"
    ):
        Environments("faulty_environments:Forgetful-v0", 1).load_state_dict(one.state_dict())


def test_nothing_done_is_a_state_too() -> None:
    one, other = Environments("CartPole-v1", 2, seed=1), Environments("CartPole-v1", 2, seed=1)
    other.load_state_dict(one.state_dict())
    np.testing.assert_array_equal(other.observations, one.observations)
