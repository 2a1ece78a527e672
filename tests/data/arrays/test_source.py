"""The source: every row once a pass, steps of one size whatever the passes, and to be gone on with anywhere."""

from __future__ import annotations

import json

import numpy as np
import pytest

from danlu.data.arrays import ArraySource
from danlu.errors import CheckpointError, DataError


def drawn(source: ArraySource, steps: int) -> np.ndarray:
    return np.concatenate([np.concatenate(source.draw()) for _ in range(steps)])


@pytest.mark.parametrize(("rows", "step"), [(10, 3), (10, 10), (3, 10), (1, 4)])
def test_every_pass_draws_every_row_once_in_an_order_of_its_own(rows: int, step: int) -> None:
    numbers = drawn(ArraySource(rows, step, seed=1), 4 * rows)
    passes = numbers[: len(numbers) // rows * rows].reshape(-1, rows)
    assert (np.sort(passes, 1) == np.arange(rows)).all()
    if rows > 3:
        assert len(np.unique(passes, axis=0)) > len(passes) // 2


def test_every_step_is_full_and_cut_into_blocks() -> None:
    source = ArraySource(10, 7, block=3)
    assert [[len(block) for block in source.draw()] for _ in range(5)] == [[3, 3, 1]] * 5
    assert source.epochs == 3.5
    assert not source.exhausted
    assert [len(block) for block in ArraySource(10, 4, block=100).draw()] == [4]


def test_blocks_change_nothing_about_what_is_drawn() -> None:
    assert np.array_equal(drawn(ArraySource(10, 7, block=2), 9), drawn(ArraySource(10, 7), 9))


def test_it_ends_after_so_many_passes() -> None:
    source = ArraySource(10, 8, epochs=2)
    sizes = []
    while not source.exhausted:
        sizes.append(sum(len(block) for block in source.draw()))
    assert sizes == [8, 8, 4]
    assert source.draw() == []
    assert source.epochs == 2


@pytest.mark.parametrize("steps", [0, 1, 2, 7])
def test_it_goes_on_where_a_state_was_taken(steps: int) -> None:
    source = ArraySource(10, 7, seed=5)
    drawn(source, steps) if steps else None
    state = json.loads(json.dumps(source.state_dict()))
    other = ArraySource(10, 7, seed=5)
    drawn(other, 3)
    other.load_state_dict(state)
    assert np.array_equal(drawn(source, 5), drawn(other, 5))


def test_another_seed_draws_otherwise() -> None:
    assert not np.array_equal(drawn(ArraySource(50, 50, seed=1), 1), drawn(ArraySource(50, 50, seed=2), 1))


def test_a_state_of_something_else_is_refused() -> None:
    source = ArraySource(10, 7)
    with pytest.raises(DataError, match="the run drew from 11 rows with seed 0, and now there are 10 with 0"):
        source.load_state_dict(ArraySource(11, 7).state_dict())
    with pytest.raises(CheckpointError, match="the state is not one of rows"):
        source.load_state_dict({"consumed": "many"})
