from __future__ import annotations

import builtins
import multiprocessing
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from faulty_environments import FAULTS

from danlu.errors import RecipeError, RunError, UnsupportedError
from danlu.world.environments import Environments
from danlu.world.making import find, make
from danlu.world.single import Single

FAULTY = "faulty_environments:Faulty-v0"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_step_is_told_by_environment_step_and_action(fault: str) -> None:
    environments = Environments(FAULTY, 3, options={"fault": fault})
    environments.reset()
    environments.step(np.zeros(3, int))
    with pytest.raises(
        RunError, match=rf"^Faulty-v0, environment 2, step 2 of its episode, action 1: .*{FAULTS[fault]}"
    ):
        environments.step(np.array([0, 0, 1]))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_step_of_one_by_itself_is_told_by_step_and_action(fault: str) -> None:
    single = Single(make(FAULTY, {"fault": fault}), None)
    single.begin(0)
    single.step(np.asarray(0))
    with pytest.raises(RunError, match=rf"^Faulty-v0, step 2 of its episode, action 1: .*{FAULTS[fault]}"):
        single.step(np.asarray(1))


def test_an_array_of_one_number_is_a_reward() -> None:
    environments = Environments(FAULTY, 2, options={"fault": "one reward"})
    environments.reset()
    assert environments.step(np.ones(2, int)).rewards.tolist() == [0.5, 0.5]
    single = Single(make(FAULTY, {"fault": "one reward"}), None)
    single.begin(0)
    assert single.step(np.asarray(1))[1] == 0.5


@pytest.mark.parametrize("fault", ["raises", "nan reward"])
def test_a_fault_in_a_process_of_its_own_is_told_too(fault: str) -> None:
    with Environments(FAULTY, 3, options={"fault": fault}, workers=2) as environments:
        environments.reset()
        with pytest.raises(
            RunError, match=rf"^Faulty-v0, environment 2, step 1 of its episode, action 1: .*{FAULTS[fault]}"
        ):
            environments.step(np.array([0, 0, 1]))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("fault", "says"), [("hangs", "said nothing for 2 s"), ("dies", "ended with status 3")])
def test_a_process_that_is_lost_names_its_environment(fault: str, says: str) -> None:
    with Environments(FAULTY, 3, options={"fault": fault}, workers=2, timeout=2.0) as environments:
        environments.reset()
        with pytest.raises(
            RunError, match=rf"^Faulty-v0, environment 1: its process {says} during a step with action 1"
        ):
            environments.step(np.array([0, 1, 0]))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_reset_that_fails_is_told(workers: int) -> None:
    with pytest.raises(RunError, match="Faulty-v0, at its reset: it raised OSError .*: no such robot"):
        Single(make(FAULTY, {"at_reset": True}), None).begin(0)
    with (
        Environments(FAULTY, 2, options={"at_reset": True}, workers=workers) as environments,
        pytest.raises(RunError, match=r"environment [01], at its reset: it raised OSError .*: no such robot"),
    ):
        environments.reset()


@pytest.mark.parametrize(
    ("name", "actions", "says"),
    [
        ("CartPole-v1", [0, 2], r"environment 1: an action is outside its space Discrete\(2\): .*2"),
        ("CartPole-v1", [-1, 0], "environment 0: an action is outside"),
        ("CartPole-v1", [0.5, 0.5], "actions are float64"),
        ("CartPole-v1", [0], r"actions have shape \(1,\), and 2 environments take \(2,\)"),
        ("Pendulum-v1", [[0.0], [2.5]], "environment 1: an action is outside .* Clip"),
        ("Pendulum-v1", [[np.nan], [0.0]], "environment 0: an action is not a number"),
        ("Pendulum-v1", [0.0, 0.0], r"actions have shape \(2,\)"),
    ],
)
@pytest.mark.parametrize("vectorize", [True, False])
def test_an_action_outside_its_space_is_told(name: str, actions: list[Any], says: str, vectorize: bool) -> None:
    environments = Environments(name, 2, vectorize=vectorize)
    environments.reset()
    with pytest.raises(RunError, match=says):
        environments.step(np.array(actions))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("CartPol-v1", "no environment 'CartPol-v1'. Did you mean 'CartPole-v1'?"),
        ("gridwold", "Did you mean 'gridworld'?"),
        ("CartPole-v7", "There is CartPole-v0, CartPole-v1."),
        ("CartPole", "There is CartPole-v0, CartPole-v1."),
        ("nowhere_to_be_found:X-v0", "the module 'nowhere_to_be_found' .* cannot be imported"),
        ("zzzzzz", "pprint_registry"),
    ],
)
def test_an_unknown_id_is_told(name: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        find(name)


def test_a_package_of_environments_that_is_missing_is_named() -> None:
    with pytest.raises(UnsupportedError, match="pip install ale-py`, and name its module: data.env=ale_py:ALE/Pong-v5"):
        find("ALE/Pong-v5")


@pytest.mark.parametrize(
    ("name", "package", "says"),
    [("LunarLander-v3", "Box2D", r"gymnasium\[box2d\]"), ("Ant-v5", "mujoco", r"danlu\[mujoco\]")],
)
def test_a_missing_extra_is_named(name: str, package: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(wanted: str, *rest: Any) -> Any:
        if wanted.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named '{package}'", name=package)
        return real(wanted, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UnsupportedError, match=rf'pip install "{says}"'):
        make(name)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("CartPole-v1", {"gravity": 3}, r"'CartPole-v1' does not take \{'gravity': 3\}.* It takes sutton_barto_reward"),
        ("gridworld", {"sise": [5, 5]}, "Did you mean 'size'?"),
        ("gridworld", {"size": [5]}, "rows and columns"),
        ("FrozenLake-v1", {"map_name": "9x9"}, "could not be made with"),
    ],
)
def test_options_an_environment_does_not_take_are_told(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        make(name, options)


def test_observations_with_parts_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="observations lie in Dict"):
        Environments("faulty_environments:Parts-v0")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_envs": 0}, "at least one environment"),
        ({"time_limit": 0}, "at least one step"),
        ({"normalize_rewards": True}, "there is no discount"),
    ],
)
def test_arguments_that_cannot_be_meant_are_told(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        Environments("CartPole-v1", **settings)


def test_a_choice_cannot_be_normalised() -> None:
    with pytest.raises(RecipeError, match="only numbers can be normalised"):
        Environments("FrozenLake-v1", normalize_observations=True)


def test_a_process_of_its_own_starts_without_torch() -> None:
    code = "import sys, danlu.world.workers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
