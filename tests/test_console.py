from __future__ import annotations

import io
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
