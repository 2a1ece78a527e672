from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from commands import Say
from danlu.acting_files import Policy, agent_of, environments_of, save_agent
from danlu.errors import RunError, UnsupportedError
from danlu.method.tables import ActionTable
from danlu.playing import play
from danlu.reading import read_recipe
from danlu.recipe_acting import ActingRecipe

LIMIT = 12


class Countdown(gym.Env[int, int]):
    """Starts at a number that follows from the seed; each step takes 1 off it and gives 2, until it is 0."""

    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 10}  # noqa: RUF012
    closed = 0

    def __init__(self, render_mode: str | None = None, fault: str = "none") -> None:
        self.observation_space, self.action_space = gym.spaces.Discrete(100), gym.spaces.Discrete(3)
        self.render_mode, self.fault = render_mode, fault

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        assert seed is not None
        self.left = 5 + seed
        return self.left, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        assert action == self.left % 3
        if self.fault == "raises":
            raise ValueError("the clock fell off")
        self.left -= 1
        return self.left, 2.0, self.left == 0, False, {}

    def render(self) -> Any:
        return np.full((8, 8, 3), 9 * self.left, np.uint8) if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        type(self).closed += 1


gym.register("Countdown-v0", entry_point=Countdown, max_episode_steps=LIMIT)


def trained(**options: Any) -> Policy:
    """An agent that takes the remainder by three of what it sees."""
    world = {"env": "Countdown-v0", "options": options}
    recipe = read_recipe({"method": "q_learning", "data": world, "run": {"steps": 1}})
    assert isinstance(recipe, ActingRecipe)
    with environments_of(recipe) as environments:
        agent = agent_of(recipe, environments)
    assert isinstance(agent, ActionTable)
    agent.q[np.arange(100), np.arange(100) % 3] = 1.0
    return Policy(agent, recipe, None)


def asks(policy: Policy) -> dict[str, Any]:
    return {"policy": policy, "episodes": 3, "seed": 4, "longest": 10}


def test_episodes_begin_by_their_seeds_and_are_cut_where_asked() -> None:
    before = Countdown.closed
    done = [(e.seed, e.rewards, e.length, e.whole) for e in play(**asks(trained()))]
    assert done == [(4, 18.0, 9, True), (5, 20.0, 10, True), (6, 20.0, 10, False)]
    assert Countdown.closed > before
    seen = list(play(**asks(trained()), pictures=True))
    assert [(e.seed, e.rewards, e.length, e.whole) for e in seen] == done
    assert [len(e.frames) for e in seen] == [10, 11, 11]
    assert [int(f[0, 0, 0]) for f in seen[0].frames] == list(range(81, -1, -9))


def test_an_environments_own_limit_ends_an_episode() -> None:
    done = list(play(trained(), episodes=1, seed=40, longest=1000))
    assert [(e.length, e.whole) for e in done] == [(LIMIT, True)]


def test_a_window_needs_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(UnsupportedError, match="no screen here"):
        list(play(**asks(trained()), window=True))
    monkeypatch.setenv("DISPLAY", ":0")
    assert [(e.rewards, e.frames) for e in play(**asks(trained()), window=True)] == [(18.0, []), (20.0, []), (20.0, [])]


def test_a_window_shows_what_has_only_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    shown: list[tuple[int, ...]] = []
    monkeypatch.setattr(pygame.display, "flip", lambda: shown.append(pygame.display.get_window_size()))
    monkeypatch.setattr(Countdown, "metadata", {"render_modes": ["rgb_array"], "render_fps": 1000})
    assert [e.rewards for e in play(**asks(trained()), window=True)] == [18.0, 20.0, 20.0]
    assert shown == [(8, 8)] * (10 + 11 + 11)


def test_what_an_environment_lacks_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    raised = "Countdown-v0, step 1 of its episode, action 0: it raised ValueError when it was stepped: the clock fell"
    for pictures in (False, True):
        with pytest.raises(RunError, match=raised):
            list(play(**asks(trained(fault="raises")), pictures=pictures))
    monkeypatch.setattr(Countdown, "metadata", {"render_modes": []})
    with pytest.raises(UnsupportedError, match="draws no pictures"):
        list(play(**asks(trained()), pictures=True))
    monkeypatch.setenv("DISPLAY", ":0")
    with pytest.raises(UnsupportedError, match="does not show itself"):
        list(play(**asks(trained()), window=True))


def test_what_draws_and_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(wanted: str, *rest: Any) -> Any:
        if wanted.partition(".")[0] == "pygame":
            raise ImportError("No module named 'pygame'")
        return real(wanted, *rest)

    recipe = read_recipe({"method": "ppo", "data": {"env": "CartPole-v1"}, "run": {"steps": 1}})
    assert isinstance(recipe, ActingRecipe)
    with environments_of(recipe) as environments:
        policy = Policy(agent_of(recipe, environments), recipe, None)
    monkeypatch.delitem(sys.modules, "pygame", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UnsupportedError, match=r"pictures of 'CartPole-v1' need a package .*pip install"):
        list(play(**asks(policy), pictures=True))


def test_what_acts_nowhere_is_not_played() -> None:
    recipe = read_recipe({"method": "robbins_monro", "run": {"steps": 1}})
    assert isinstance(recipe, ActingRecipe)
    with pytest.raises(UnsupportedError, match="acts nowhere"):
        next(play(**asks(Policy(agent_of(recipe, None), recipe, None))))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a run leaves of an agent."""
    policy = trained()
    save_agent(policy.agent, policy.recipe, None, tmp_path / "run" / "final")
    return tmp_path / "run"


def test_the_command_tells_of_each_episode(say: Say, run: Path) -> None:
    answer = say("play", run, "--episodes", 2, "--seed", 3)
    assert (answer.status, answer.err) == (0, "")
    first, second, end = answer.rows
    assert first == {"episode": 0, "seed": 3, "return": 16.0, "length": 8, "whole": True}
    assert second["return"] == 18.0
    assert end == {"episodes": 2, "return_mean": 17.0, "return_std": 1.0}


def test_the_command_writes_a_gif(say: Say, run: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    answer = say("play", run, "--episodes", 2, "--out", tmp_path / "a.gif")
    assert (answer.status, answer.err) == (0, "")
    assert answer.rows[-1]["gif"] == str(tmp_path / "a.gif")
    with image.open(tmp_path / "a.gif") as read:
        assert read.n_frames == 6 + 7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "a.png"], "what is written is a GIF"),
        (["--out", "nowhere/a.gif"], "its folder does not exist"),
        (["--out", "a.gif", "--window"], "a window shows what a GIF would hold"),
    ],
)
def test_a_gif_that_has_no_place_is_one_sentence(say: Say, run: Path, options: list[str], words: str) -> None:
    answer = say("play", run, *options)
    assert (answer.status, answer.out) == (1, "")
    assert words in answer.err
    assert answer.err.count("\n") == 1


def test_what_was_trained_in_a_grid_goes_to_its_target_and_stays(say: Say, tmp_path: Path) -> None:
    """So twelve steps more return twelve more, wherever it began."""
    pytest.importorskip("PIL.Image")
    answer = say("train", "gridworld", "run.steps=40", f"run.out={tmp_path / 'run'}")
    assert (answer.status, answer.err) == (0, "")
    asked = ("play", tmp_path / "run", "--episodes", 5, "--longest")
    short, long = ([row["return"] for row in say(*asked, n).rows[:-1]] for n in (12, 24))
    assert [b - a for a, b in zip(short, long, strict=True)] == [12.0] * 5
    assert {row["length"] for row in say(*asked, 100).rows[:-1]} == {25}, "the run's own limit cuts it, too"
    seen = say(*asked, 12, "--out", tmp_path / "a.gif")
    assert [row["return"] for row in seen.rows[:-1]] == short
    assert (tmp_path / "a.gif").read_bytes().startswith(b"GIF89a")
    page = Path(say("report", tmp_path / "run").out.strip()).read_text(encoding="utf-8")
    assert page.count('class="moment"') > 2
    assert "The cell in a whole frame is the target." in page
