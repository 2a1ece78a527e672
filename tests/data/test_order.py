from __future__ import annotations

import numpy as np
import pytest

from danlu.data.order import chosen, mix, permutation


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
