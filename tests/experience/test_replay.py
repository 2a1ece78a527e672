"""What is remembered: the newest rows, the same after going back, and never a mix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from hypothesis import given
from hypothesis import strategies as st

from danlu.errors import CheckpointError
from danlu.experience.replay import Ring
from danlu.spaces import Spaces

SPACES = Spaces(Box(-1.0, 1.0, (3,), np.float32), Discrete(4))


def rows(first: int, num: int) -> dict[str, np.ndarray]:
    numbers = np.arange(first, first + num)
    return {
        "observations": np.repeat(numbers[:, None], 3, 1).astype(np.float32),
        "actions": numbers % 4,
        "rewards": numbers.astype(np.float32),
        "terminated": numbers % 5 == 0,
        "truncated": numbers % 7 == 0,
        "following": np.repeat(numbers[:, None] + 1, 3, 1).astype(np.float32),
    }


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.integers(1, 12))
def test_it_remembers_the_newest_rows_whole(sizes: list[int], size: int) -> None:
    ring, count = Ring(SPACES, size, None), 0
    for num in (min(n, size) for n in sizes):
        ring.add(rows(count, num))
        count += num
    assert len(ring) == min(count, size)
    drawn = ring.sample(500, np.random.default_rng(0))
    numbers = drawn.rewards[:, 0].numpy()
    if len(ring) < 20:
        assert set(numbers) == set(range(count - len(ring), count))
    expected = rows(0, count)
    for name in ("observations", "actions", "terminated", "truncated", "following"):
        np.testing.assert_array_equal(getattr(drawn, name)[:, 0].numpy(), expected[name][numbers.astype(int)])


def test_going_back_finds_what_was_there_then(tmp_path: Path) -> None:
    ring = Ring(SPACES, 10, tmp_path)
    ring.add(rows(0, 15))
    before = ring.sample(50, np.random.default_rng(1)).rewards
    ring.add(rows(15, 9))  # a crash, and another process
    again = Ring(SPACES, 10, tmp_path)
    again.go_back(15)
    assert (again.sample(50, np.random.default_rng(1)).rewards == before).all()


def test_rows_that_are_gone_are_told(tmp_path: Path) -> None:
    ring = Ring(SPACES, 10, tmp_path)
    for first in range(0, 40, 5):
        ring.add(rows(first, 5))
    again = Ring(SPACES, 10, tmp_path)
    again.go_back(30)
    with pytest.raises(CheckpointError, match="5 of the 10 steps that the run remembered are gone"):
        again.go_back(25)
    with pytest.raises(CheckpointError, match="gone"):
        Ring(SPACES, 10, tmp_path / "elsewhere").go_back(5)
