"""Runs of methods that act: saved and gone on with to the bit, measured, exported, and refused by a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tests.broken_off import EndedError, Until

import danlu
from danlu.engine.record import rows_of
from danlu.errors import CheckpointError, DanluError, RecipeError, RunError, UnsupportedError

SMALL: dict[str, tuple[str, ...]] = {
    "ppo": ("data.env=CartPole-v1", "data.num_envs=4", "run.steps=6"),
    "ddpg": (
        "data.env=Pendulum-v1",
        "data.env_steps=400",
        "method.start=50",
        "method.batch_size=16",
        "method.buffer_size=300",
        "model.hidden=[16]",
    ),
    "gridworld": ("run.steps=6",),
}
"""A run of each kind of experience: rollouts, a replay, a world that is known."""
NOISY = ("seconds", "steps_per_second", "memory_bytes")


def train(recipe: str, out: Path, *more: str) -> danlu.Run:
    quick = ("data.eval_episodes=2", "run.threads=1", "run.checkpoint_every=2")
    return danlu.train(recipe, *SMALL[recipe], *quick, *more, f"run.out={out}")


def rows(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in NOISY} for row in rows_of(run / "metrics.jsonl")]


def weights(run: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = load_file(run / "final" / "model.safetensors")
    return found


@pytest.mark.parametrize("recipe", SMALL)
def test_a_run_that_was_broken_off_goes_on_to_the_bit(recipe: str, tmp_path: Path) -> None:
    train(recipe, tmp_path / "whole")
    steps = rows(tmp_path / "whole")[-1]["step"]
    with pytest.raises(EndedError):
        danlu.train(
            recipe,
            *SMALL[recipe],
            *("data.eval_episodes=2", "run.threads=1", "run.checkpoint_every=2", f"run.out={tmp_path / 'broken'}"),
            listeners=[Until(max(3, steps // 2 + 1))],
        )
    danlu.resume(tmp_path / "broken")
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")
    whole, broken = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert whole.keys() == broken.keys()
    for name, tensor in whole.items():
        assert tensor.tobytes() == broken[name].tobytes(), name


def test_a_trained_agent_acts_from_its_files(tmp_path: Path) -> None:
    run = train("ppo", tmp_path / "run", "data.normalize_observations=true")
    policy = danlu.load_agent(run.path)
    one, several = np.array([0.1, 0, -0.1, 0], np.float32), np.zeros((3, 4), np.float32)
    assert policy.act(one) in (0, 1)
    assert policy.act(several).shape == (3,)
    assert policy.env_id == "CartPole-v1"
    with pytest.raises(CheckpointError, match="there is no agent here"):
        danlu.load_agent(tmp_path)


def test_what_it_is_measured_by_is_written_down(tmp_path: Path) -> None:
    run = train("gridworld", tmp_path / "run", "run.eval_every=3")
    measured = [row for row in rows(run.path) if "held_out_return" in row]
    assert [row["step"] for row in measured] == [0, 3, 6]
    shown = [event for event in rows_of(run.path / "events.jsonl") if event["kind"] == "values"]
    assert all(len(event["values"]) == len(event["actions"]) == 25 for event in shown)
    world = next(event for event in rows_of(run.path / "events.jsonl") if event["kind"] == "world")
    assert (world["height"], world["width"], world["cells"]["target"]) == (5, 5, 17)


class Breaking(gymnasium.Env[int, int]):
    """Counts its steps; fails at the twentieth of its first episode."""

    observation_space, action_space, mended = gymnasium.spaces.Discrete(40), gymnasium.spaces.Discrete(2), False

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        self.place = 0
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        if self.place == 20 and not self.mended:
            raise ValueError("the wheel came off")
        self.place += 1
        return self.place, float(action), self.place == 39, False, {}


gymnasium.register("Breaking-v0", entry_point=Breaking)


@pytest.mark.parametrize(("every", "says"), [(2, "It goes on where it was saved by: danlu resume"), (100, "")])
def test_a_run_whose_world_fails_goes_on_where_it_was_saved(
    every: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {
        "method": {"name": "sarsa", "steps": 6},
        "data": {"env": "Breaking-v0", "eval_episodes": 0},
        "run": {"steps": 9, "threads": 1, "checkpoint_every": every},
    }
    raised = "environment 0, step 21 of its episode, action [01]: it raised ValueError .* the wheel came off"
    with pytest.raises(RunError, match=f"{raised}. ?{says}"):
        danlu.train(recipe, f"run.out={tmp_path / 'broken'}")
    monkeypatch.setattr(Breaking, "mended", True)
    if not says:
        with pytest.raises(DanluError, match="before its first checkpoint"):
            danlu.resume(tmp_path / "broken")
        return
    whole, broken = danlu.train(recipe, f"run.out={tmp_path / 'whole'}"), danlu.resume(tmp_path / "broken")
    assert rows(broken.path) == rows(whole.path)


def test_gradients_are_told_of_where_there_are_any(tmp_path: Path) -> None:
    table, network = (rows(train(name, tmp_path / name).path) for name in ("gridworld", "ppo"))
    told = {"grad_norm", "lr"}
    assert not any(told & row.keys() for row in table)
    turns = [row for row in network if "loss" in row]
    assert len(turns) == 6
    assert all(row["grad_norm"] > 0 for row in turns)
    assert [row["lr"] for row in turns] == pytest.approx([1e-3 * (1 - n / 6) for n in range(1, 7)])


def test_how_long_a_gradient_may_be_is_the_optimisers_to_say(tmp_path: Path) -> None:
    free, held = (
        train("ppo", tmp_path / str(norm), "run.steps=2", f"optimizer.clip_norm={norm}") for norm in ("null", "1e-12")
    )
    start = danlu.load_agent(held.path)
    before = start.recipe.method.agent(start.spaces, start.recipe.model, 0).state_dict()
    moved = [
        max(float((before[k] - torch.from_numpy(v)).abs().max()) for k, v in weights(run.path).items())
        for run in (free, held)
    ]
    assert moved[0] > 1e-3
    assert moved[1] < 1e-6


@pytest.mark.parametrize(
    ("recipe", "overrides", "error", "words"),
    [
        ("ppo", ["data.env=CartPole-v9"], DanluError, "CartPole"),
        ("ddpg", ["data.env=CartPole-v1"], UnsupportedError, "chooses continuous actions"),
        ("gridworld", ["data.env=CartPole-v1"], UnsupportedError, "keeps a number for each state"),
        ("ppo", ["data.env=null"], RecipeError, "no world is named"),
        ("ppo", ["data.env_steps=null", "run.steps=null"], RecipeError, "set run.steps or data.env_steps"),
        ("gridworld", ["model.name=mlp"], RecipeError, "has no network"),
        ("ppo", ["data.options={size: 3}"], DanluError, "does not take"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(
    recipe: str, overrides: list[str], error: type[DanluError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        danlu.train(recipe, *SMALL[recipe], *overrides, f"run.out={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_what_is_for_sequences_says_so_of_a_method_that_acts(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="learns from acting"):
        danlu.verify("ppo")
    run = train("gridworld", tmp_path / "run")
    with pytest.raises(DanluError):
        danlu.export(run.path, tmp_path / "out")
