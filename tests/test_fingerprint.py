from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapter.bases import checkpoint
from danlu.adapter.lora import LoRA
from danlu.architecture.checkpoint import load_model
from danlu.fingerprint import fingerprints, model_fingerprint, total

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_fingerprint_is_of_every_bit_and_every_place(dtype: torch.dtype) -> None:
    plain = torch.tensor([1.5, -2.0, 1.5, 0.0, 8.0]).to(dtype)
    (before,) = fingerprints([plain])
    assert fingerprints([plain.clone()]) == [before]
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    for place in range(len(plain)):
        for bit in range(8 * dtype.itemsize):
            other = plain.clone()
            held = other.view(integers)
            held[place] ^= torch.tensor(-(2 ** (8 * dtype.itemsize - 1)) if bit == 8 * dtype.itemsize - 1 else 1 << bit)
            assert fingerprints([other]) != [before], (place, bit)
    swapped = plain.view(integers)[[1, 0, 2, 3, 4]].view(dtype)
    assert fingerprints([swapped]) != [before]


def test_a_fingerprint_is_the_weighted_sum_of_bits_for_any_shape_and_any_number_of_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against Python's own integers."""
    monkeypatch.setattr("danlu.fingerprint._IN_CACHE", 7)
    weight = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    weight[2, 3] = float("nan")
    for tensor in (weight, weight.t(), weight[:, 2:4], weight[:0], weight[0, 0]):
        bits = tensor.contiguous().view(torch.int32).flatten().tolist()
        expected = sum((2 * i + 1) * value for i, value in enumerate(bits))
        assert fingerprints([tensor]) == [(expected + 2**63) % 2**64 - 2**63]
    assert fingerprints([]) == []


@given(st.lists(st.floats(-4, 4, width=32), min_size=2, max_size=6), st.integers(0, 5), st.integers(0, 5))
def test_moves_in_opposite_directions_do_not_cancel(values: list[float], a: int, b: int) -> None:
    a, b = a % len(values), b % len(values)
    if a == b:
        return
    before = torch.tensor(values)
    after = before.clone()
    bits = after.view(torch.int32)
    bits[a] += 1
    bits[b] -= 1
    assert fingerprints([before]) != fingerprints([after])


def test_the_total_tells_the_order() -> None:
    assert total([1, 2]) != total([2, 1])
    assert total([]) == 0
    assert total([-1]) == 2**64 - 1


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_checkpoint_has_one_fingerprint_whoever_runs_it_and_whatever_stands_beside_it(
    name: str, tmp_path: Path
) -> None:
    folder = checkpoint(name, tmp_path)
    ours, theirs = load_model(folder), load_model(folder, bridge=True)
    found = model_fingerprint(ours)
    assert type(ours) is not type(theirs)
    assert model_fingerprint(theirs) == found
    LoRA(rank=1).attach(ours)
    assert model_fingerprint(ours) == found
    with torch.no_grad():
        next(ours.parameters()).view(-1)[3] += 1e-3
    assert model_fingerprint(ours) != found
