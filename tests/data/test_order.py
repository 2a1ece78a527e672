from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.data.order import chosen, mix, permutation, pools, uniform


def test_mix_gives_the_published_stream() -> None:
    """The first outputs of SplitMix64 from state 1234567, as Rosetta Code and Java's SplittableRandom give them."""
    gamma = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + i * gamma) % 2**64 for i in range(1, 4)], np.uint64)
    assert mix(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("size", [0, 1, 2, 1000])
def test_a_permutation_has_every_index_once(size: int) -> None:
    assert sorted(permutation(size, seed=3, epoch=2).tolist()) == list(range(size))


def test_a_permutation_is_a_function_of_seed_and_epoch() -> None:
    orders = {(s, e): tuple(permutation(100, s, e).tolist()) for s in (0, 1, -1) for e in (0, 1)}
    assert orders == {(s, e): tuple(permutation(100, s, e).tolist()) for s, e in orders}
    assert len(set(orders.values())) == len(orders)


def test_a_permutation_favours_no_place() -> None:
    """Where index 0 of ten lands, over many keys: a chi-squared statistic of nine degrees of freedom."""
    places = [int(np.argmin(permutation(10, seed, epoch))) for seed in range(50) for epoch in range(40)]
    counts = np.bincount(places, minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 27.9  # the 0.1% point


def test_the_share_chosen_is_the_fraction_and_grows_with_it() -> None:
    digests = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64)
    few, many = chosen(digests, 0.05, seed=0), chosen(digests, 0.3, seed=0)
    assert abs(few.mean() - 0.05) < 0.01
    assert abs(many.mean() - 0.3) < 0.02
    assert not (few & ~many).any()
    assert (few != chosen(digests, 0.05, seed=1)).any()


def test_the_order_of_an_epoch_is_what_it_has_always_been() -> None:
    assert permutation(8, seed=0, epoch=0).tolist() == [6, 5, 2, 4, 3, 1, 0, 7]
    assert (permutation(100, 0, 0, pool=0) == permutation(100, 0, 0)).all()
    assert (permutation(100, 0, 0, pool=1) != permutation(100, 0, 0)).any()


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 200), st.booleans())
def test_pools_have_every_chunk_once_and_are_about_as_large_as_asked(
    sizes: list[int], pool_bytes: int, shuffle: bool
) -> None:
    found = pools(np.array(sizes), pool_bytes, 0, 0, shuffle)
    drawn = [chunk for pool in found for chunk in pool.tolist()]
    assert sorted(drawn) == list(range(len(sizes)))
    assert all(pool.tolist() == sorted(pool.tolist()) and len(pool) for pool in found)
    assert all(sum(sizes[i] for i in pool) <= pool_bytes + max(sizes) for pool in found)
    assert shuffle or drawn == sorted(drawn)
    assert sum(sizes) > pool_bytes or len(found) == 1


def test_pools_are_a_function_of_seed_and_epoch() -> None:
    sizes = np.full(50, 10)
    found = {tuple(map(tuple, pools(sizes, 100, seed, epoch))) for seed in (0, 1) for epoch in (0, 1)}
    assert len(found) == 4


def test_the_numbers_of_a_stream_are_uniform() -> None:
    drawn = [uniform(n, "a", 0) for n in range(2000)]
    counts = np.bincount([int(10 * x) for x in drawn], minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 27.9
