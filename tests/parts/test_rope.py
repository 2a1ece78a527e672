from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from danlu.errors import UnsupportedError
from danlu.parts.rope import Rotary, frequencies, rotate

ORIGINAL = {"original_max_position_embeddings": 64}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL}
SCALINGS: list[dict[str, Any] | None] = [
    None,
    {"rope_type": "linear", "factor": 4.0},
    LLAMA3,
    {"type": "yarn", "factor": 4.0, **ORIGINAL},
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_a_score_depends_on_the_difference_of_positions(scaling: dict[str, Any] | None) -> None:
    rotary = Rotary(8, 10000.0, scaling)
    q, k = torch.randn(2, 1, 3, 8, dtype=torch.float64)

    def score(i: int, j: int) -> torch.Tensor:
        turned = [rotate(x, *rotary(torch.tensor([place]))) for x, place in ((q, i), (k, j))]
        return (turned[0] * turned[1]).sum(-1)

    torch.testing.assert_close(score(7, 3), score(29, 25), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(score(7, 3), score(7, 4), atol=1e-3)
    torch.testing.assert_close(score(5, 5), (q * k).sum(-1) * rotary.factor**2, rtol=1e-5, atol=1e-5)


@given(st.integers(0, 200), st.sampled_from([2, 4, 16]))
def test_each_pair_turns_as_a_complex_number_does(position: int, width: int) -> None:
    rotary, x = Rotary(width, 100.0), torch.randn(1, 2, width, dtype=torch.float64)
    pairs = torch.complex(x[..., : width // 2], x[..., width // 2 :])
    angles = position * 100.0 ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    found = rotate(x, *rotary(torch.tensor([position])))
    torch.testing.assert_close(found, torch.cat([turned.real, turned.imag], -1), rtol=1e-4, atol=1e-4)


def test_linear_scaling_stretches_positions() -> None:
    plain, stretched = Rotary(8, 50.0), Rotary(8, 50.0, {"rope_type": "linear", "factor": 4.0})
    for a, b in zip(plain(torch.tensor([3, 5])), stretched(torch.tensor([12, 20])), strict=True):
        torch.testing.assert_close(a, b)


def test_llama3_keeps_fast_pairs_and_slows_slow_ones_down() -> None:
    base, _ = frequencies(64, 10000.0, {})
    scaled, factor = frequencies(64, 10000.0, LLAMA3)
    turns = 64 * base / (2 * math.pi)
    assert factor == 1.0
    assert torch.equal(scaled[turns > 4], base[turns > 4])
    torch.testing.assert_close(scaled[turns < 1], base[turns < 1] / 8)
    between = (turns > 1) & (turns < 4)
    assert between.any()
    assert ((scaled < base) & (scaled > base / 8))[between].all()


def test_positions_are_exact_in_single_precision_whatever_the_model_is_in() -> None:
    positions = torch.tensor([4097, 30001])
    assert torch.equal(Rotary(8, 1e4)(positions)[0], Rotary(8, 1e4).to(torch.float64)(positions)[0])
    assert Rotary(8, 1e4)(positions)[0].dtype == torch.float32


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "proportional", "new"])
def test_scalings_that_depend_on_the_neighbours_are_refused(kind: str) -> None:
    with pytest.raises(UnsupportedError, match=kind):
        Rotary(8, 1e4, {"rope_type": kind, "factor": 2.0})


def test_heads_that_are_rotated_in_part_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="part"):
        Rotary(8, 1e4, {"rope_type": "default", "partial_rotary_factor": 0.5})
    Rotary(8, 1e4, {"rope_type": "default", "partial_rotary_factor": 1.0})
