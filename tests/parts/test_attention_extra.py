"""Learned keys in front, against the definition with everything written out."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from danlu.packed import Packed
from danlu.parts.attention import AttentionDropout, attend_reference, attention
from danlu.parts.attention_extra import InFront
from danlu.sight import ANYWHERE, Extra
from strategies import forests, keyed, windows

LAYERS, HEADS, GROUPS, WIDTH = 2, 4, 2, 3


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def extras(draw: st.DrawFn, packed: Packed) -> list[Extra]:
    """One or two, each seen by some runs of rows."""
    found = []
    for number in range(draw(st.integers(1, 2))):
        cuts = sorted(draw(st.lists(st.integers(0, len(packed)), min_size=2, max_size=6)))
        runs = [(a, b) for a, b in list(pairwise(cuts))[::2] if a < b] or [(0, len(packed))]
        num = draw(st.integers(1, 3))
        offsets = draw(st.sampled_from([torch.full((num,), ANYWHERE), torch.arange(-num, 0)]))
        values = noise(LAYERS, 2, num, GROUPS, WIDTH, seed=number).requires_grad_()
        keys = torch.arange(num, dtype=torch.int32) * 7919 + number
        found.append(Extra(str(number), offsets, runs, keys, lambda values=values: values))
    return found


@given(forests(min_segments=1), st.data(), windows(), st.booleans())
def test_it_is_attention_to_all_keys_there_are(
    packed: Packed, data: st.DataObject, window: int | None, random: bool
) -> None:
    extra = data.draw(extras(packed))
    q, k, v = (noise(len(packed), n, WIDTH, seed=9 + n).requires_grad_() for n in (HEADS, GROUPS, GROUPS))
    keys, place = keyed(packed).keys, torch.tensor(5, dtype=torch.int32)
    assert keys is not None
    memory = InFront(extra)
    sight = memory.sight(packed)
    dropped = AttentionDropout(0.4, keys, keys, place) if random else None
    out = attention(q, k, v, sight, window=window, dropout=dropped, backend=memory.backend(1))

    runs = [(one, run) for one in extra for run in one.runs]
    joined = [torch.cat([*(one.values[1, side] for one, _ in runs), own]) for side, own in enumerate((k, v))]
    all_keys = torch.cat([*(one.keys for one, _ in runs), keys])
    everything = AttentionDropout(0.4, keys, all_keys, place) if random else None
    rows, columns, past = torch.arange(len(packed))[:, None], [], packed.sight.mask(window)
    for one, (start, stop) in runs:
        near = torch.ones(len(packed), len(one.offsets), dtype=torch.bool)
        if window is not None:
            near = (packed.offsets[:, None] - one.offsets < window) | (one.offsets == ANYWHERE)
        columns.append(near & (start <= rows) & (rows < stop))
    assert torch.equal(sight.mask(window), torch.cat([*columns, past], dim=1))
    expected = attention(q, *joined, sight, window=window, dropout=everything, backend=attend_reference)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    leaves = [q, k, v, *(one.values for one in extra)]
    upstream = noise(*out.shape, seed=3)
    for found, right in zip(*(torch.autograd.grad((x * upstream).sum(), leaves) for x in (out, expected)), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-9, atol=1e-9)
