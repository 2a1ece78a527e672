from __future__ import annotations

import io
import re
import sys

import pytest

from danlu.console import Console


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("rank", [None, 0, 1, 3])
def test_of_several_ranks_the_first_draws(rank: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    with Console():
        pass
    assert bool(screen.getvalue()) == (not rank)


@pytest.mark.parametrize(("steps", "shown"), [(0, "environment step 3000/4000"), (8, "step 3/8")])
def test_what_is_as_long_as_its_steps_in_the_world_is_counted_by_these(
    steps: int, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("TERM", "xterm"), ("COLUMNS", "160")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RANK", raising=False)
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    world = {"env": "CartPole-v1", "num_envs": 2, "env_steps": 4000, "observation": "Box", "action": "Discrete(2)"}
    with Console() as console:
        console.event({"kind": "start", "steps": steps})
        console.event({"kind": "world", **world})
        console.metrics({"step": 3, "loss": 0.5, "total_env_steps": 3000, "steps_per_second": 100.0})
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue()).strip().splitlines()[-1]
    assert last.startswith(shown)
    assert "loss 0.5" in last
