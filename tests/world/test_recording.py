from __future__ import annotations

import builtins
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest

from danlu.errors import RunError, UnsupportedError
from danlu.world.gridworld import GridWorld
from danlu.world.recording import record


def test_an_episode_is_recorded_picture_by_picture() -> None:
    recording = record("gridworld", lambda shown: 1, options={"starts": [[0, 0]]}, longest=6)
    assert recording.length == 6
    assert len(recording.frames) == 7
    assert recording.rewards == -2  # four steps to the right, two into the boundary
    assert all(f.dtype == np.uint8 and f.shape == recording.frames[0].shape for f in recording.frames)
    assert (recording.frames[0] != recording.frames[1]).any()
    np.testing.assert_array_equal(recording.frames[4], recording.frames[5])


def test_what_is_drawn_over_a_grid_can_be_prepared() -> None:
    def prepare(env: gymnasium.Env[Any, Any]) -> None:
        assert isinstance(env, GridWorld)
        env.set_overlay(values=np.arange(25.0))

    options = {"starts": [[0, 0]]}
    plain = record("gridworld", lambda shown: 4, options=options, longest=1)
    drawn = record("gridworld", lambda shown: 4, options=options, longest=1, prepare=prepare)
    assert (plain.frames[0] != drawn.frames[0]).any()


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_gymnasiums_own_are_recorded(name: str) -> None:
    pytest.importorskip("pygame")
    act = (lambda shown: np.zeros(1, np.float32)) if name == "Pendulum-v1" else (lambda shown: 0)
    recording = record(name, act, seed=3, longest=5)
    assert recording.frames[0].ndim == 3
    assert (recording.frames[0] != recording.frames[-1]).any()
    assert recording.frames_per_second > 0


def test_a_missing_package_for_pictures_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(wanted: str, *rest: Any) -> Any:
        if wanted.partition(".")[0] == "pygame":
            raise ImportError("No module named 'pygame'")
        return real(wanted, *rest)

    monkeypatch.delitem(sys.modules, "pygame", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UnsupportedError, match=r"pictures of 'CartPole-v1' need a package .*pip install"):
        record("CartPole-v1", lambda shown: 0)


def test_what_draws_no_pictures_is_told() -> None:
    with pytest.raises(UnsupportedError, match="draws no pictures"):
        record("faulty_environments:Wander-v0", lambda shown: 0)


def test_an_agent_that_does_what_cannot_be_done_is_told() -> None:
    with pytest.raises(RunError, match="outside its space"):
        record("gridworld", lambda shown: 9)
