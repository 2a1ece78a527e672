from __future__ import annotations

import math
from itertools import permutations
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from danlu.opaque import drop_threshold
from danlu.packed import Packed
from danlu.parts.attention import keep_scale
from danlu.random import (
    bits,
    dropout,
    fold,
    mix32,
    normal,
    permutation,
    place_key,
    token_keys,
    uniform,
)
from strategies import forests, keyed

M32, M64 = 2**32 - 1, 2**64 - 1
int32s = st.integers(-(2**31), 2**31 - 1)
SIGMAS = 5.0
"""How far from its expectation a statistic may lie; the seeds are fixed, so it lies where it lies."""


def lowbias32(x: np.ndarray) -> np.ndarray:
    """Wellons' finaliser as published, in unsigned arithmetic."""
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def splitmix64(x: int) -> int:
    """One step of SplitMix64 from state x, as published, in whole numbers."""
    z = (x + 0x9E3779B97F4A7C15) & M64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M64
    return z ^ (z >> 31)


def unsigned(x: Tensor) -> np.ndarray:
    return x.numpy().view(np.uint32)


def rows(num: int, seed: int = 0) -> Tensor:
    """Keys of `num` rows: one sample of that many tokens."""
    return token_keys(fold(seed, 1), torch.zeros(num, dtype=torch.int64), torch.arange(num))


def correlation(a: Tensor, b: Tensor) -> float:
    """Times the root of how many there are: standard normal where they are independent."""
    a, b = (x.double().flatten() - x.double().mean() for x in (a, b))
    return float((a * b).sum() / (a.norm() * b.norm()) * math.sqrt(a.numel()))


def chi_square(counts: np.ndarray, expected: float) -> float:
    """In standard deviations from its mean."""
    freedom = len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom))


@given(st.lists(int32s, min_size=1, max_size=50))
def test_mix32_is_the_published_finaliser_in_unsigned_arithmetic(values: list[int]) -> None:
    x = torch.tensor(values, dtype=torch.int32)
    assert np.array_equal(unsigned(mix32(x)), lowbias32(unsigned(x)))


@given(st.lists(int32s, min_size=1, max_size=5), int32s, st.integers(0, 9))
def test_bits_are_a_hash_of_key_place_and_column(keys: list[int], place: int, num: int) -> None:
    x = torch.tensor(keys, dtype=torch.int32)
    column = np.arange(num, dtype=np.uint32) * np.uint32(0x9E3779B9)
    expected = lowbias32(lowbias32(unsigned(x) ^ np.uint32(place & M32))[:, None] + column)
    for given_place in (place, torch.tensor(place, dtype=torch.int32)):
        assert np.array_equal(unsigned(bits(x, given_place, num)), expected)


@given(st.lists(st.integers(-(2**63), 2**64 - 1), max_size=4))
def test_fold_is_splitmix64_over_its_parts(parts: list[int]) -> None:
    key = 0
    for part in parts:
        key = splitmix64(key ^ (part & M64))
    assert fold(*parts) == key


@given(st.integers(0, M64), st.lists(st.tuples(st.integers(0, 2**62), st.integers(0, 2**31)), min_size=1, max_size=5))
def test_token_keys_are_the_high_half_of_a_hash_of_update_sample_and_offset(
    key: int, pairs: list[tuple[int, int]]
) -> None:
    sample, offset = torch.tensor(pairs, dtype=torch.int64).T
    expected = [splitmix64(splitmix64(key ^ s) ^ o) >> 32 for s, o in pairs]
    assert unsigned(token_keys(key, sample, offset)).tolist() == expected


def test_names_are_parts_like_numbers() -> None:
    assert fold("a", 1) != fold("b", 1) != fold("a", 2)
    assert fold("a", 1) == fold("a", 1)
    places = [place_key(f"layers.{i}.{part}") for i in range(200) for part in ("attn", "mlp")]
    assert len(set(places)) == len(places)
    assert all(-(2**31) <= place < 2**31 for place in places)


def test_compiled_draws_are_the_same_bits_as_eager_ones() -> None:
    def draw(keys: Tensor, place: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        scale = keep_scale(keys[:7], keys, place, 3, 0.3)
        return bits(keys, place, 33), uniform(keys, place, 33), dropout(x, keys, place, 0.3), scale

    given_ = rows(40), torch.tensor(place_key("somewhere"), dtype=torch.int32), torch.randn(40, 33)
    for compiled, eager in zip(torch.compile(draw)(*given_), draw(*given_), strict=True):
        assert torch.equal(compiled, eager)


@pytest.mark.parametrize("shift", [0, 8, 16, 24])
@pytest.mark.parametrize("shape", [(1 << 16, 1), (1, 1 << 16), (256, 256)])
def test_every_byte_is_uniform_over_rows_and_columns(shape: tuple[int, int], shift: int) -> None:
    drawn = unsigned(bits(rows(shape[0]), 7, shape[1])).ravel()
    counts = np.bincount((drawn >> np.uint32(shift)) & 255, minlength=256)
    assert abs(chi_square(counts, drawn.size / 256)) < SIGMAS


def kolmogorov(drawn: Tensor, distribution: Tensor) -> float:
    """The largest distance of the sample's distribution from the right one, times the root of its size."""
    steps = torch.arange(len(drawn) + 1, dtype=torch.float64) / len(drawn)
    distance = torch.maximum((steps[1:] - distribution).abs(), (distribution - steps[:-1]).abs()).max()
    return float(distance) * math.sqrt(len(drawn))


def test_uniform_is_uniform_in_the_open_interval() -> None:
    drawn = uniform(rows(1000), 3, 100).flatten().double().sort().values
    assert drawn[0] > 0
    assert drawn[-1] < 1
    assert kolmogorov(drawn, drawn) < 1.95  # one in a thousand
    extremes = torch.tensor([[0, -1, 2**31 - 1, -(2**31)]], dtype=torch.int32)
    with patch("danlu.random.bits", lambda *_: extremes):
        ends = uniform(rows(1), 3, 4)
        assert ((ends > 0) & (ends < 1)).all()
        assert normal(rows(1), 3, 2).isfinite().all()


def test_normal_is_standard_normal() -> None:
    num = 1 << 17
    drawn = normal(rows(num // 128), 3, 128).flatten().double()
    assert drawn.isfinite().all()
    moments = {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}  # of the power: its mean and variance
    for power, (mean, variance) in moments.items():
        assert abs(float(drawn.pow(power).mean()) - mean) < SIGMAS * math.sqrt(variance / num)
    ordered = drawn.sort().values
    assert kolmogorov(ordered, 0.5 * (1 + torch.erf(ordered / math.sqrt(2)))) < 1.95
    columns = normal(rows(num // 4), 3, 4)
    assert all(abs(correlation(columns[:, a], columns[:, b])) < SIGMAS for a in range(4) for b in range(a))


def test_neighbours_of_every_kind_are_independent() -> None:
    """Rows, columns, places, steps, seeds and samples that follow each other have nothing to do with each other."""
    zeros, numbers = torch.zeros(512, dtype=torch.int64), torch.arange(512)

    def table(seed: int = 0, step: int = 1, sample: int = 5, place: str = "layers.0.mlp_drop") -> Tensor:
        return uniform(token_keys(fold(seed, step), zeros + sample, numbers), place_key(place), 128)

    first = table()
    others = [table(seed=1), table(step=2), table(sample=6), table(place="layers.1.mlp_drop"), table(seed=1, step=0)]
    assert all(abs(correlation(first, other)) < SIGMAS for other in others)
    for lag in (1, 2, 8, 64):
        assert abs(correlation(first[lag:], first[:-lag])) < SIGMAS
        assert abs(correlation(first[:, lag:], first[:, :-lag])) < SIGMAS
    means = first.double().mean(1), first.double().mean(0)
    for mean, num in zip(means, (128, 512), strict=True):
        assert float((mean - 0.5).abs().max()) < SIGMAS / math.sqrt(12 * num)


def test_swapping_sample_and_offset_or_seed_and_step_is_another_draw() -> None:
    def key(seed: int, step: int, sample: int, offset: int) -> int:
        return int(token_keys(fold(seed, step), torch.tensor([sample]), torch.tensor([offset])))

    assert len({key(*order) for order in permutations((1, 2, 3, 4))}) == 24


def test_every_input_bit_moves_every_output_bit_half_of_the_time() -> None:
    x = rows(4096)
    for bit in range(32):
        flipped = mix32(x) ^ mix32(x ^ torch.tensor(1 << bit, dtype=torch.int64).to(torch.int32))
        moved = torch.stack([(flipped >> out) & 1 for out in range(32)]).double().mean(1)
        assert float((moved - 0.5).abs().max()) < 0.05


def test_mix32_is_one_to_one() -> None:
    x = torch.cat([torch.arange(1 << 20, dtype=torch.int32), torch.arange(-(1 << 20), 0, dtype=torch.int32)])
    assert len(mix32(x).unique()) == len(x)


@pytest.mark.parametrize("p", [0.0, 0.01, 0.1, 0.5, 0.9])
def test_dropout_drops_its_fraction_and_keeps_the_mean(p: float) -> None:
    x = torch.ones(1024, 256)
    dropped = dropout(x, rows(1024), 11, p)
    num, expected = x.numel(), SIGMAS * math.sqrt(p * (1 - p) / x.numel())
    assert abs(int((dropped == 0).sum()) / num - p) <= expected
    assert abs(float(dropped.double().mean()) - 1) <= expected / (1 - p) + 1e-6
    assert dropped.unique().tolist() == pytest.approx([1.0] if p == 0 else [0.0, 1 / (1 - p)])


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1 - 2**-20])
def test_the_threshold_splits_the_integers_at_the_fraction(p: float) -> None:
    assert int(drop_threshold(p, torch.device("cpu"))) + 2**31 == round(p * 2**32)
    assert -(2**31) <= int(drop_threshold(p, torch.device("cpu"))) < 2**31


def test_attention_dropout_drops_its_fraction_of_pairs_independently() -> None:
    keys, p = rows(256), 0.2
    scale = keep_scale(keys, keys, torch.tensor(3, dtype=torch.int32), 4, p)
    dropped = (scale == 0).double()
    assert scale.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])
    assert abs(float(dropped.mean()) - p) < SIGMAS * math.sqrt(p * (1 - p) / dropped.numel())
    assert abs(correlation(dropped[0], dropped[0].T)) < SIGMAS
    assert all(abs(correlation(dropped[a], dropped[b])) < SIGMAS for a in range(4) for b in range(a))
    assert abs(correlation(dropped[:, 1:], dropped[:, :-1])) < SIGMAS
    assert abs(correlation(dropped[:, :, 1:], dropped[:, :, :-1])) < SIGMAS
    elsewhere = keep_scale(keys, keys, torch.tensor(4, dtype=torch.int32), 4, p)
    assert abs(correlation(scale, elsewhere)) < SIGMAS


def test_dropout_has_the_gradient_of_what_it_kept() -> None:
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(dropout(x, rows(5), 2, 0.4).sum(), x)
    assert torch.equal(gradient, dropout(torch.ones_like(x), rows(5), 2, 0.4))


@given(st.lists(forests(min_segments=1, max_segments=3), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_a_row_drops_the_same_wherever_its_tree_lies(packs: list[Packed], random: object) -> None:
    trees = Packed.join(packs).split()
    order = list(range(len(trees)))
    random.shuffle(order)  # type: ignore[attr-defined]
    place = torch.tensor(place_key("here"), dtype=torch.int32)
    whole = keyed(Packed.join([trees[i] for i in order]))
    drops = dropout(torch.ones(len(whole), 16), whole.keys, place, 0.5)
    scales = keep_scale(whole.keys, whole.keys, place, 2, 0.5)
    start = 0
    for i in order:
        alone, rows_ = keyed(trees[i]), slice(start, start + len(trees[i]))
        start = rows_.stop
        assert torch.equal(whole.keys[rows_], alone.keys)
        assert torch.equal(drops[rows_], dropout(torch.ones(len(alone), 16), alone.keys, place, 0.5))
        assert torch.equal(scales[:, rows_, rows_], keep_scale(alone.keys, alone.keys, place, 2, 0.5))


def test_another_step_or_seed_drops_otherwise() -> None:
    pack = Packed.tree([list(range(9))])
    assert not torch.equal(keyed(pack, step=1).keys, keyed(pack, step=2).keys)
    assert not torch.equal(keyed(pack, seed=0).keys, keyed(pack, seed=1).keys)
    assert torch.equal(keyed(pack, seed=3, step=4).keys, keyed(pack, seed=3, step=4).keys)


@given(st.integers(0, 50), st.integers(0, 10**6))
def test_a_permutation_holds_each_number_once_and_depends_on_its_parts_alone(size: int, seed: int) -> None:
    order = permutation(size, seed, "order")
    np.random.default_rng().random()
    torch.rand(1)
    assert sorted(order.tolist()) == list(range(size))
    assert np.array_equal(order, permutation(size, seed, "order"))


def test_permutations_are_uniform_and_of_their_parts() -> None:
    drawn = [tuple(permutation(4, seed, 0).tolist()) for seed in range(2400)]
    counts = np.array([drawn.count(p) for p in permutations(range(4))])
    assert abs(chi_square(counts, 100)) < SIGMAS
    assert permutation(100, 1, 2).tolist() != permutation(100, 2, 1).tolist()


@pytest.mark.parametrize("place", [0, 5, -7, place_key("somewhere")])
def test_numbers_made_on_the_host_are_those_made_anywhere(place: int) -> None:
    keys = token_keys(3, torch.arange(40), torch.zeros(40, dtype=torch.int64))
    anywhere = uniform(keys, torch.tensor(place, dtype=torch.int32), 9)  # a place that is a tensor is no host's
    assert torch.equal(uniform(keys, place, 9), anywhere)
    assert torch.equal(uniform(keys.view(5, 8), place, 9), anywhere.view(5, 8, 9))
    assert uniform(keys[:0], place, 9).shape == (0, 9)
    assert uniform(keys[::2], place, 0).shape == (20, 0)
    assert torch.equal(uniform(keys[::2], place, 3), anywhere[::2, :3])
