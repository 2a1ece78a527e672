from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.data.packing import BALANCED, best_fit, pack
from danlu.errors import DataError


@given(st.lists(st.integers(0, 50), max_size=200), st.integers(50, 120), st.integers(1, 64))
def test_every_index_is_packed_once_and_no_pack_is_over_budget(
    lengths: list[int], budget: int, look_ahead: int
) -> None:
    packs = pack(lengths, budget, look_ahead)
    assert sorted(index for held in packs for index in held) == list(range(len(lengths)))
    assert all(held and sum(lengths[i] for i in held) <= budget for held in packs)
    assert packs == pack(np.array(lengths), budget, look_ahead)
    assert len(packs) == len(best_fit(lengths, budget, look_ahead))


@given(st.lists(st.integers(1, 50), max_size=200), st.integers(50, 120), st.integers(1, 64))
def test_no_index_waits_longer_than_the_look_ahead(lengths: list[int], budget: int, look_ahead: int) -> None:
    done: set[int] = set()
    for held in best_fit(lengths, budget, look_ahead):
        oldest = min(set(range(len(lengths))) - done)
        assert held[0] == oldest
        for index in held:
            assert index < look_ahead + len(done)
            done.add(index)


def test_looking_one_ahead_keeps_the_order() -> None:
    for one in (pack, best_fit):
        assert one([3, 3, 5, 1, 1], budget=6, look_ahead=1) == [[0, 1], [2, 3], [4]]


def test_of_those_that_fit_the_longest_is_taken() -> None:
    assert best_fit([6, 1, 3, 4, 4], budget=10) == [[0, 3], [1, 4, 2]]


def test_packs_of_ordinary_lengths_are_nearly_full() -> None:
    draw = np.random.default_rng(0).normal(np.log(150), 1, 20_000)
    lengths = np.clip(np.exp(draw), 16, 1024).astype(np.int64)
    packs = pack(lengths, 4096)
    assert lengths.sum() / (len(packs) * 4096) >= 0.98


def test_a_sample_over_the_budget_is_named() -> None:
    with pytest.raises(DataError, match="sample 2 has 11 tokens, and a pack holds 10"):
        pack([10, 3, 11, 12], budget=10)


def cost(lengths: list[int], packs: list[list[int]]) -> list[int]:
    return [sum(lengths[i] * (4096 + lengths[i]) for i in held) for held in packs]


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=80))
def test_no_pack_costs_more_than_best_fits_dearest(lengths: list[int]) -> None:
    assert max(cost(lengths, pack(lengths, 4096))) <= max(cost(lengths, best_fit(lengths, 4096)))


def test_packs_of_a_step_cost_about_the_same() -> None:
    draw = np.random.default_rng(0)
    before, after = [], []
    for _ in range(40):
        lengths = np.clip(np.exp(draw.normal(np.log(300), 1, 64)), 16, 2048).astype(int).tolist()
        for packs, spread in ((best_fit(lengths, 8192), before), (pack(lengths, 8192), after)):
            costs = cost(lengths, packs)
            spread.append(max(costs) / (sum(costs) / len(costs)))
    assert np.mean(before) > 1.3
    assert np.mean(after) < 1.05
    assert np.median(after) < 1.01


def test_packs_far_apart_are_not_mixed() -> None:
    lengths = np.random.default_rng(0).integers(1, 4096, 20_000)
    packs, plain = pack(lengths, 4096), best_fit(lengths, 4096)
    for first in range(0, len(plain), BALANCED):
        some = slice(first, first + BALANCED)
        assert sorted(i for held in packs[some] for i in held) == sorted(i for held in plain[some] for i in held)
