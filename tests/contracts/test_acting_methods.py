"""What every method that learns from acting keeps to, whatever it learns from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import danlu
from danlu.acting import ActingMethod
from danlu.acting_files import agent_of, environments_of, load_agent
from danlu.engine.record import rows_of
from danlu.errors import UnsupportedError
from danlu.reading import read_recipe
from danlu.recipe_acting import ActingRecipe
from danlu.registry import exported, lookup, name_of
from danlu.world.gridworld import GridWorld

METHODS = [entry.name for entry in exported("method") if issubclass(entry.target, ActingMethod)]
SMALL: dict[str, dict[str, Any]] = {
    "ddpg": {"start": 20, "batch_size": 8, "buffer_size": 200},
    "dqn": {"start": 20, "batch_size": 8, "buffer_size": 200},
    "monte_carlo_basic": {"longest": 5},
    "monte_carlo_exploring_starts": {"longest": 20},
    "monte_carlo_epsilon_greedy": {"longest": 20},
    "reinforce": {"longest": 30},
    "off_policy_ac": {"start": 20, "batch_size": 8, "buffer_size": 200},
}
"""Fields with which a turn is short, of the methods whose turns are long by default."""


def recipe_of(name: str, *, steps: int = 3, **data: Any) -> dict[str, Any]:
    """A short run of a method, in the smallest world that it can act in."""
    kind = lookup("method", name)
    known = {field: value for field, value in SMALL.get(name, {}).items() if field in kind.model_fields}
    recipe: dict[str, Any] = {"method": {"name": name, **known}, "run": {"steps": steps, "threads": 1}}
    if kind.goal != "approximation":
        continuous = "discrete" not in kind.acts_in
        bounded = "MountainCar-v0" if kind.level == "features" else "CartPole-v1"
        env = "gridworld" if kind.finite else "Pendulum-v1" if continuous else bounded
        recipe["data"] = {"env": env, "eval_episodes": 1, "eval_steps": 20, **data}
    if kind.level == "network":
        recipe["model"] = {"name": "mlp", "hidden": [8]}
    return recipe


def rows(run: Path) -> list[dict[str, Any]]:
    timed = ("seconds", "steps_per_second", "memory_bytes")
    return [{k: v for k, v in row.items() if k not in timed} for row in rows_of(run / "metrics.jsonl")]


@pytest.mark.parametrize("name", METHODS)
def test_a_run_is_finite_repeats_to_the_bit_and_comes_back_from_its_files(name: str, tmp_path: Path) -> None:
    first, second = (danlu.train(recipe_of(name), f"run.out={tmp_path / n}") for n in ("a", "b"))
    assert rows(first.path) == rows(second.path)
    turns = [row for row in rows(first.path) if "loss" in row]
    assert [row["step"] for row in turns] == [1, 2, 3]
    assert all(np.isfinite(value) for row in turns for value in row.values())
    a, b = (load_file(run.path / "final" / "model.safetensors") for run in (first, second))
    assert a.keys() == b.keys()
    assert all(a[key].tobytes() == b[key].tobytes() for key in a)
    agent = load_agent(first.path).agent
    assert {key: tensor.numpy().tobytes() for key, tensor in agent.state_dict().items()} == {
        key: tensor.tobytes() for key, tensor in a.items()
    }


@pytest.mark.parametrize("name", METHODS)
def test_something_is_learned(name: str, tmp_path: Path) -> None:
    recipe = read_recipe(recipe_of(name, steps=30 if name in SMALL else 3))
    assert isinstance(recipe, ActingRecipe)
    environments = environments_of(recipe) if recipe.data.env else None
    before = {key: tensor.clone() for key, tensor in agent_of(recipe, environments).state_dict().items()}
    run = danlu.train(recipe, f"run.out={tmp_path / 'run'}")
    after = load_agent(run.path).agent.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", [name for name in METHODS if lookup("method", name).goal == "control"])
def test_what_is_done_is_possible_and_without_chance_always_the_same(name: str) -> None:
    recipe = read_recipe(recipe_of(name))
    assert isinstance(recipe, ActingRecipe)
    with environments_of(recipe, num_envs=5) as environments:
        agent, seen = agent_of(recipe, environments), torch.from_numpy(environments.observations)
        best = agent.act(seen, None).actions
        assert torch.equal(best, agent.act(seen, None).actions)
        for chance in (None, torch.Generator().manual_seed(0)):
            actions = environments.spaces.possible(agent.act(seen, chance).actions.numpy())
            assert len(actions) == 5
            assert all(environments.spaces.action.contains(action) for action in actions)


@pytest.mark.parametrize("name", METHODS)
def test_a_space_that_it_cannot_act_in_is_refused(name: str) -> None:
    kind = lookup("method", name)
    if kind.goal == "approximation":
        pytest.skip("it acts nowhere")
    recipe = read_recipe(recipe_of(name))
    assert isinstance(recipe, ActingRecipe)
    wrong = (
        [] if kind.acts_in == {"continuous", "discrete"} else ["discrete" if "continuous" in kind.acts_in else "box"]
    )
    for env in ["CartPole-v1" if one == "discrete" else "Pendulum-v1" for one in wrong]:
        elsewhere = recipe.model_copy(update={"data": recipe.data.model_copy(update={"env": env})})
        with environments_of(elsewhere) as environments, pytest.raises(UnsupportedError, match="chooses"):
            agent_of(elsewhere, environments)
    if kind.finite:
        elsewhere = recipe.model_copy(update={"data": recipe.data.model_copy(update={"env": "CartPole-v1"})})
        with (
            environments_of(elsewhere) as environments,
            pytest.raises(UnsupportedError, match="a number for each state"),
        ):
            agent_of(elsewhere, environments)


PAGES = Path(__file__).parent.parent.parent / "docs" / "acting"


@pytest.mark.parametrize("name", METHODS)
def test_it_has_a_place_in_the_pages_with_its_source_and_a_recipe_that_is_one(name: str) -> None:
    entry = next(entry for entry in exported("method") if entry.name == name)
    sections = [part for page in PAGES.glob("*.md") for part in page.read_text(encoding="utf-8").split("\n## ")[1:]]
    (section,) = [section for section in sections if section.partition("\n")[0] == name]
    assert entry.source.split()[-1] in section
    assert "**Measured.**" in section
    assert "{{" not in section
    command = section.partition("`danlu train ")[2].partition("`")[0]
    source, *overrides = command.partition(" [")[0].split()
    assert name_of(type(read_recipe(source, overrides).method)) == name


FINDERS = [name for name in METHODS if lookup("method", name).finite and lookup("method", name).goal == "control"]


@pytest.mark.parametrize("name", [name for name in FINDERS if name != "monte_carlo_basic"])
def test_as_it_is_by_default_it_finds_the_target(name: str, tmp_path: Path) -> None:
    run = danlu.train("gridworld", f"method={name}", "run.threads=1", f"run.out={tmp_path / 'run'}")
    agent, layout = load_agent(run.path).agent, GridWorld().layout
    cells = torch.arange(25)
    for _ in range(25):
        cells = torch.from_numpy(layout.following[cells, agent.act(cells, None).actions])
    assert int((cells == layout.target).sum()) >= 24
