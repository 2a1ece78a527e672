"""What agents meet that is out of the ordinary: refused with a sentence, or done right."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import danlu
from danlu.acting import Agent, Choice
from danlu.acting_experiment import assemble_acting
from danlu.engine.record import rows_of
from danlu.errors import DanluError, RunError
from danlu.reading import read_recipe
from danlu.recipe_acting import ActingRecipe
from danlu.training import dry_run

sys.path.insert(0, str(Path(__file__).parent / "world"))
WORLD = "faulty_environments:{}-v0".format
QUICK = ("run.steps=2", "data.env_steps=null", "run.threads=1", "data.eval_episodes=2", "data.eval_steps=5")


def trained(folder: Path, method: str, env: str, *overrides: str) -> Path:
    return danlu.train(method, *QUICK, f"data.env={env}", *overrides, f"run.out={folder / 'run'}").path


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in rows_of(run / "events.jsonl") if event["kind"] == kind]


@pytest.mark.parametrize("method", ["ppo", "trpo"])
def test_returns_that_never_differ_end_no_run(tmp_path: Path, method: str) -> None:
    run = trained(tmp_path, method, WORLD("Even"))
    told = [row["explained_variance"] for row in rows_of(run / "metrics.jsonl") if "explained_variance" in row]
    assert told == [0.0, 0.0]


def test_states_are_counted_from_where_the_world_does(tmp_path: Path) -> None:
    run = trained(
        tmp_path, "gridworld", WORLD("Counted"), "method=q_learning", "run.steps=20", "method.epsilon.start=1"
    )
    values = events(run, "values")[-1]["values"]
    agent = danlu.load_agent(run).agent
    assert values == pytest.approx(agent.q.max(1).values.tolist(), abs=1e-5)
    assert values[1] == max(values)


@pytest.mark.parametrize("env", ["Counted", "Digits"])
def test_a_network_takes_what_is_counted_from_elsewhere(tmp_path: Path, env: str) -> None:
    assert trained(tmp_path, "ppo", WORLD(env)).exists()


@pytest.mark.parametrize("method", ["ppo", "ddpg"])
@pytest.mark.parametrize("options", ["{shape: [2, 2]}", "{shape: []}", "{shape: [2], dtype: int64}"])
def test_actions_of_a_shape_that_none_can_choose_are_refused(tmp_path: Path, method: str, options: str) -> None:
    with pytest.raises(DanluError, match="an array of real numbers with one axis, and actions are Box"):
        trained(tmp_path, method, WORLD("Grabs"), f"data.options={options}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["td0", "td_linear"])
def test_what_values_a_given_policy_is_not_measured_by_returns(tmp_path: Path, method: str) -> None:
    run = trained(tmp_path, "gridworld", "gridworld", f"method={method}")
    assert not any("held_out_return" in row for row in rows_of(run / "metrics.jsonl"))
    assert all("actions" not in event for event in events(run, "values"))
    assert "nothing was gained" not in (run / "report.html").read_text()
    assert "A given policy is valued" in (run / "report.html").read_text()


@pytest.mark.parametrize("method", ["reinforce", "monte_carlo_epsilon_greedy"])
def test_whole_episodes_are_played_in_this_process(tmp_path: Path, method: str) -> None:
    with pytest.raises(DanluError, match="plays whole episodes.*in this process") as caught:
        trained(tmp_path, "gridworld", "gridworld", f"method={method}", "data.workers=2")
    assert "data.workers" in str(caught.value)


class Hanged(Agent):
    """Does what hangs."""

    def act(self, observations: Tensor, chance: torch.Generator | None) -> Choice:
        return Choice(torch.ones(len(observations), dtype=torch.int64))


def test_an_environment_that_hangs_while_it_is_measured_is_told() -> None:
    told = ("data.options={fault: hangs}", "data.workers=1", "data.timeout=2")
    recipe = read_recipe("dqn", [f"data.env={WORLD('Faulty')}", *told])
    assert isinstance(recipe, ActingRecipe)
    experiment = assemble_acting(recipe)
    try:
        with pytest.raises(RunError, match="said nothing for 2 s during a step with action 1"):
            experiment.tried(Hanged(experiment.policy.spaces))
    finally:
        experiment.close()


def test_a_run_that_would_end_before_it_learns_is_refused() -> None:
    with pytest.raises(DanluError, match="learns from step 10000 on .*, and data.env_steps is 1500"):
        dry_run("ddpg", "data.env=Pendulum-v1", "data.env_steps=1500")


@pytest.mark.parametrize(
    ("env", "observation", "says"),
    [
        ("CartPole-v1", np.zeros(7), r"observations have shape \(7,\), and one of .* has \(4,\)"),
        ("CartPole-v1", None, "observations have shape|an observation is"),
        ("CartPole-v1", np.full(4, np.nan), "is not a number"),
        ("CartPole-v1", "text", "an observation is 'text'"),
        ("gridworld", 99, "outside its space"),
        ("gridworld", -1, "outside its space"),
        ("gridworld", 2.7, "outside its space"),
    ],
)
def test_what_is_no_observation_is_told(tmp_path: Path, env: str, observation: Any, says: str) -> None:
    recipe, *more = ("a2c",) if env != "gridworld" else ("gridworld", "method=q_learning")
    policy = danlu.load_agent(trained(tmp_path, recipe, env, *more))
    with pytest.raises(DanluError, match=says):
        policy.act(observation)
