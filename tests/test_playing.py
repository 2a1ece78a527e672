from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from commands import Say
from danlu.errors import RunError, UnsupportedError
from danlu.playing import Policy, play, recorded


class Countdown(gym.Env[int, int]):
    """Starts at a number that follows from the seed; each step takes 1 off it and gives 2, until it is 0."""

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space, self.action_space = gym.spaces.Discrete(100), gym.spaces.Discrete(3)
        self.render_mode, self.closed = render_mode, False

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        assert seed is not None
        self.left = 5 + seed
        return self.left, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        assert action == self.left % 3
        self.left -= 1
        return self.left, 2.0, self.left == 0, False, {}

    def close(self) -> None:
        self.closed = True


@dataclass
class Made:
    env: gym.Env[Any, Any]
    limit: int | None = None


@dataclass
class Trained:
    """An agent that takes the remainder by three of what it sees."""

    env_id: str | None = "Countdown-v0"
    env_options: Mapping[str, Any] = field(default_factory=dict)

    def act(self, observation: Any) -> Any:
        return observation % 3


def made(env_id: str, options: Mapping[str, Any] | None, *, render_mode: str | None) -> Made:
    assert (env_id, options) == ("Countdown-v0", {})
    return Made(Countdown(render_mode))


@dataclass
class Recorded:
    frames: list[np.ndarray]
    rewards: float
    length: int
    frames_per_second: float = 10.0


def record(
    env_id: str, act: Callable[[Any], Any], *, options: Mapping[str, Any] | None, seed: int, longest: int
) -> Recorded:
    assert (env_id, options) == ("Countdown-v0", {})
    env, total = Countdown(), 0.0
    observation, _ = env.reset(seed=seed)
    seen = [np.full((8, 8, 3), 9 * observation, np.uint8)]
    for _ in range(longest):
        observation, reward, terminated, _, _ = env.step(act(observation))
        seen.append(np.full((8, 8, 3), 9 * observation, np.uint8))
        total += reward
        if terminated:
            break
    return Recorded(seen, total, len(seen) - 1)


def asks(policy: Policy) -> dict[str, Any]:
    return {"policy": policy, "episodes": 3, "seed": 4, "longest": 10}


def test_episodes_begin_by_their_seeds_and_are_cut_where_asked() -> None:
    done = [(e.seed, e.returned, e.length, e.whole) for e in play(**asks(Trained()), make=made)]
    assert done == [(4, 18.0, 9, True), (5, 20.0, 10, True), (6, 20.0, 10, False)]
    seen = list(recorded(**asks(Trained()), record=record))
    assert [(e.seed, e.returned, e.length) for e in seen] == [(4, 18.0, 9), (5, 20.0, 10), (6, 20.0, 10)]
    assert [len(e.frames) for e in seen] == [10, 11, 11]


def test_an_environments_own_limit_ends_an_episode() -> None:
    limited = Made(Countdown(), 3)
    done = list(play(**asks(Trained()), make=lambda *_, **__: limited))
    assert [(e.length, e.whole) for e in done] == [(3, True)] * 3
    assert limited.env.closed  # type: ignore[attr-defined]


def test_a_window_needs_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(UnsupportedError, match="no screen here"):
        list(play(**asks(Trained()), make=made, window=True))
    monkeypatch.setenv("DISPLAY", ":0")
    asked: list[str | None] = []

    def heard(env_id: str, options: Mapping[str, Any] | None, *, render_mode: str | None) -> Made:
        asked.append(render_mode)
        return made(env_id, options, render_mode=render_mode)

    list(play(**asks(Trained()), make=heard, window=True))
    assert asked == ["human"]


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (gym.error.DependencyNotInstalled("no pygame"), UnsupportedError, r"pip install 'danlu\[play\]'"),
        (gym.error.ResetNeeded("reset\nfirst"), RunError, "Countdown-v0 cannot be acted in: reset"),
    ],
)
def test_what_an_environment_lacks_is_a_sentence(fault: Exception, kind: type[Exception], words: str) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise fault

    for acted in (play(**asks(Trained()), make=broken), recorded(**asks(Trained()), record=broken)):
        with pytest.raises(kind, match=words):
            next(acted)


def test_what_acts_nowhere_is_not_played() -> None:
    for acted in (play(**asks(Trained(None)), make=made), recorded(**asks(Trained(None)), record=record)):
        with pytest.raises(UnsupportedError, match="acts nowhere"):
            next(acted)


@pytest.fixture
def wired(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules that the command finds its parts in."""
    loaded: list[str] = []
    for name, word, part in (
        ("danlu.acting_files", "load_agent", lambda run: loaded.append(str(run)) or Trained()),
        ("danlu.world.recording", "record", record),
        ("danlu.world.making", "make", made),
    ):
        module = ModuleType(name)
        setattr(module, word, part)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "danlu.world", ModuleType("danlu.world"))


@pytest.mark.usefixtures("wired")
def test_the_command_tells_of_each_episode(say: Say) -> None:
    answer = say("play", "run", "--episodes", 2, "--seed", 3)
    assert (answer.status, answer.err) == (0, "")
    first, second, end = answer.rows
    assert first == {"episode": 0, "seed": 3, "return": 16.0, "length": 8, "whole": True}
    assert second["return"] == 18.0
    assert end == {"episodes": 2, "return_mean": 17.0, "return_std": 1.0}


@pytest.mark.usefixtures("wired")
def test_the_command_writes_a_gif(say: Say, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    answer = say("play", "run", "--episodes", 2, "--out", tmp_path / "a.gif")
    assert (answer.status, answer.err) == (0, "")
    assert answer.rows[-1]["gif"] == str(tmp_path / "a.gif")
    with image.open(tmp_path / "a.gif") as read:
        assert read.n_frames == 6 + 7


@pytest.mark.usefixtures("wired")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "a.png"], "what is written is a GIF"),
        (["--out", "nowhere/a.gif"], "its folder does not exist"),
        (["--out", "a.gif", "--window"], "a window shows what a GIF would hold"),
    ],
)
def test_a_gif_that_has_no_place_is_one_sentence(say: Say, options: list[str], words: str) -> None:
    answer = say("play", "run", *options)
    assert (answer.status, answer.out) == (1, "")
    assert words in answer.err
    assert answer.err.count("\n") == 1


def test_what_was_trained_in_a_grid_goes_to_its_target_and_stays(say: Say, tmp_path: Path) -> None:
    """So twenty steps more return twenty more, wherever it began."""
    pytest.importorskip("PIL.Image")
    answer = say("train", "gridworld", "run.steps=40", f"run.out={tmp_path / 'run'}")
    assert (answer.status, answer.err) == (0, "")
    asked = ("play", tmp_path / "run", "--episodes", 5, "--longest")
    short, long = ([row["return"] for row in say(*asked, n).rows[:-1]] for n in (20, 40))
    assert [b - a for a, b in zip(short, long, strict=True)] == [20.0] * 5
    seen = say(*asked, 20, "--out", tmp_path / "a.gif")
    assert [row["return"] for row in seen.rows[:-1]] == short
    assert (tmp_path / "a.gif").read_bytes().startswith(b"GIF89a")
    page = Path(say("report", tmp_path / "run").out.strip()).read_text(encoding="utf-8")
    assert page.count('class="moment"') > 2
    assert "The cell in a whole frame is the target." in page
