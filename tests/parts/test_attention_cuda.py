from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import flex_attention as flex
from torch.nn.attention import varlen

from danlu.errors import UnsupportedError
from danlu.packed import ROOT, Packed
from danlu.parts import attention_cuda
from danlu.parts.attention import Asked, AttentionDropout, attend_reference
from danlu.parts.attention_cuda import (
    attend_flex,
    attend_on_cuda,
    attend_runs,
    block_mask,
    runs_of,
    seen_by_interval,
    visible_blocks,
)
from danlu.sight import Sight
from strategies import forests, windows

SCALE = 0.3
BENT = {"softcap": 1.5, "sinks": torch.linspace(-1, 1, 4)}
"""Capped scores, and sinks of four heads."""


def inputs(
    sight: Sight, heads: int, groups: int, *, width: int = 16, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(len(sight.first))
    shapes = [(len(sight.query_offset), heads), (len(sight.first), groups), (len(sight.first), groups)]
    return [torch.randn(*shape, width, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def dropout_of(sight: Sight, p: float = 0.4) -> AttentionDropout:
    generator = torch.Generator().manual_seed(1)
    sizes = (len(sight.query_offset), len(sight.first))
    keys = [torch.randint(-(2**31), 2**31 - 1, (n,), generator=generator).to(torch.int32) for n in sizes]
    return AttentionDropout(p, *keys, torch.tensor(7, dtype=torch.int32))


def sights() -> st.SearchStrategy[Sight]:
    """Forests with themselves, with learned keys before them, and with another forest."""
    plain = forests(min_segments=1).map(lambda packed: packed.sight)
    extra = st.tuples(plain, st.integers(1, 3)).map(lambda pair: pair[0].with_extra(pair[1]))
    crossed = forests(min_segments=1).map(lambda packed: packed.cross(Packed.join([packed])))
    return st.one_of(plain, extra, crossed)


def dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    block_mask: flex.BlockMask,
    scale: float,
    enable_gqa: bool,
    score_mod: Any = None,
    return_aux: Any = None,
) -> Any:
    """What FlexAttention computes, in plain operations that autograd knows; blocks left out are left out here too."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) if enable_gqa else x for x in (k, v))
    head, query, key = (torch.arange(n) for n in (q.shape[1], q.shape[2], k.shape[2]))
    blocks = block_mask.to_dense()[0, 0].bool()
    for axis, size in enumerate(block_mask.BLOCK_SIZE):
        blocks = blocks.repeat_interleave(size, dim=axis)
    zero = torch.zeros((), dtype=torch.int64)
    seen = block_mask.mask_mod(zero, zero, query[:, None], key) & blocks[: len(query), : len(key)]
    scores = q @ k.transpose(2, 3) * scale
    if score_mod is not None:
        scores = score_mod(scores, zero, head[:, None, None], query[:, None], key)
    scores = scores.masked_fill(~seen, -math.inf)
    blind = scores.isneginf().all(-1, keepdim=True)
    scores = scores.masked_fill(blind, 0.0)
    out = scores.softmax(-1).masked_fill(blind, 0.0) @ v
    lse = scores.logsumexp(-1).masked_fill(blind[..., 0], -math.inf)
    return out if return_aux is None else (out, flex.AuxOutput(lse=lse))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_cuda, "BLOCK_ROWS", 4)


@given(sight=sights(), window=windows())
def test_the_interval_rule_is_the_mask(sight: Sight, window: int | None) -> None:
    sizes = (len(sight.query_offset), len(sight.first))
    mask = flex.create_mask(seen_by_interval(sight, window), 1, 1, *sizes, device="cpu")
    assert torch.equal(mask[0, 0], sight.mask(window))


@pytest.mark.usefixtures("small_blocks")
@given(sight=sights(), window=windows())
def test_blocks_cover_what_is_seen_and_whole_ones_are_seen_as_a_whole(sight: Sight, window: int | None) -> None:
    some, whole = visible_blocks(sight, window)
    mask = sight.mask(window)
    padded = torch.nn.functional.pad(mask, (0, -mask.shape[1] % 4, 0, -mask.shape[0] % 4))
    tiles = padded.unflatten(1, (-1, 4)).unflatten(0, (-1, 4)).transpose(1, 2).flatten(2)
    assert not (tiles.any(2) & ~some).any()
    assert not (whole & ~tiles.all(2)).any()
    assert not (whole & ~some).any()
    if window is None:
        assert torch.equal(some, tiles.any(2))
        assert torch.equal(whole, tiles.all(2))


def test_far_blocks_are_left_out_by_a_window() -> None:
    sight = Packed.tree([[1] * 2048]).sight
    some, whole = visible_blocks(sight, 200)
    assert some.sum(1).max() <= 3
    assert visible_blocks(sight, None)[1].sum() == 16 * 15 // 2
    assert not whole.any()


@pytest.mark.usefixtures("small_blocks")
def test_a_block_of_learned_and_other_keys_is_not_whole_beyond_the_window() -> None:
    some, whole = visible_blocks(Packed.tree([[1] * 12], causal=False).sight.with_extra(2), 3)
    assert some[:, 0].all()
    assert not whole[:, 0].any()
    assert visible_blocks(Packed.tree([[1] * 12], causal=False).sight.with_extra(4), 3)[1][:, 0].all()


@pytest.mark.usefixtures("small_blocks")
@given(
    sight=sights(),
    window=windows(),
    shape=st.sampled_from([(2, 2), (4, 2), (3, 1)]),
    dropped=st.booleans(),
    softcap=st.sampled_from([None, 1.5]),
    sunk=st.booleans(),
)
def test_values_and_gradients_are_the_references(
    sight: Sight, window: int | None, shape: tuple[int, int], dropped: bool, softcap: float | None, sunk: bool
) -> None:
    given_, ours = (inputs(sight, *shape) for _ in range(2))
    dropout = dropout_of(sight) if dropped else None
    if sunk:
        given_, ours = ([*x, torch.linspace(-1, 1, shape[0], dtype=torch.float64)] for x in (given_, ours))
    for x in (*given_, *ours):
        x.requires_grad_()
    mask = block_mask(sight, window)
    asked = Asked(window, SCALE, dropout, softcap)
    actual = attend_flex(*ours[:3], mask, asked._replace(sinks=ours[3] if sunk else None), kernel=dense)
    expected = attend_reference(*given_[:3], sight, asked._replace(sinks=given_[3] if sunk else None))
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)  # the keep factor is single
    for a, b in zip(
        torch.autograd.grad(actual, ours, upstream), torch.autograd.grad(expected, given_, upstream), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("width", [8, 16])
@pytest.mark.parametrize("bent", [False, True])
def test_torchs_flex_attention_gives_the_reference(
    dtype: torch.dtype, dropped: bool, window: int | None, width: int, bent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward, uncompiled; a width below what its kernels know is padded."""
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    tree = Packed.tree(
        [[1] * 100, [2] * 40, [3] * 9, [4] * 7], parents=[ROOT, 0, 1, 0], causal=[True, False, True, True]
    )
    sight = Packed.join([tree, Packed.tree([[5] * 30])]).sight.with_extra(4, (0, 100))
    q, k, v = inputs(sight, 4, 2, width=width, dtype=dtype)
    dropout = dropout_of(sight) if dropped else None
    mask = block_mask(sight, window)
    asked = Asked(window, SCALE, dropout, **(BENT if bent else {}))
    actual = attend_flex(q, k, v, mask, asked, kernel=flex.flex_attention)
    expected = attend_reference(q, k, v, sight, asked)
    tolerance = 1e-5 if dtype == torch.float32 or dropped else 1e-9
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_a_pack_of_nothing_gives_nothing() -> None:
    sight = Packed.empty().sight
    assert attend_flex(*inputs(sight, 2, 1), block_mask(sight, None), Asked(None, 1.0)).shape == (0, 2, 16)


documents = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@given(lengths=documents, causal=st.booleans())
def test_documents_and_images_are_runs(lengths: list[int], causal: bool) -> None:
    packed = Packed.tree([[1] * n for n in lengths], parents=[ROOT] * len(lengths), causal=causal)
    runs = runs_of(packed.sight)
    assert runs is not None
    assert runs.causal == causal
    assert runs.cu_queries.dtype == runs.cu_keys.dtype == torch.int32
    assert runs.cu_queries.tolist() == runs.cu_keys.tolist() == packed.bounds
    assert runs.longest_queries == runs.longest_keys == max(lengths)


@given(ours=documents, data=st.data())
def test_another_forests_trees_are_runs(ours: list[int], data: st.DataObject) -> None:
    theirs = data.draw(st.lists(st.integers(1, 9), min_size=len(ours), max_size=len(ours)))
    packs = [Packed.tree([[1] * n for n in lengths], parents=[ROOT] * len(ours)) for lengths in (ours, theirs)]
    runs = runs_of(packs[0].cross(packs[1]))
    assert runs is not None
    assert (runs.cu_queries.tolist(), runs.cu_keys.tolist()) == (packs[0].bounds, packs[1].bounds)
    assert (runs.longest_queries, runs.longest_keys, runs.causal) == (max(ours), max(theirs), False)


def test_what_runs_cannot_say_goes_to_flex() -> None:
    document = Packed.tree([[1] * 5])
    prompt = Packed.tree([[1] * 5, [2] * 3], parents=[ROOT, 0])
    mixed = Packed.join([document, Packed.tree([[1] * 5], causal=False)])
    for sight in (prompt.sight, mixed.sight, document.sight.with_extra(2), Packed.empty().sight):
        assert runs_of(sight) is None


def test_a_sights_masks_are_made_once_and_go_with_it() -> None:
    sight = Packed.tree([[1] * 5]).sight
    plans = attention_cuda._Plan._known
    before = len(plans)
    mask = attention_cuda._Plan.of(sight).block_mask(sight, None)
    again = Sight(sight.calls, sight.first, sight.end, sight.query_offset, sight.key_offset)
    assert attention_cuda._Plan.of(again).block_mask(again, None) is mask
    assert attention_cuda._Plan.of(again).block_mask(again, 3) is not mask
    assert len(plans) == before + 1
    del sight, again
    assert len(plans) == before


@pytest.mark.parametrize("older", [False, True])
def test_the_variable_length_kernel_is_asked_in_its_own_words(older: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def new(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):  # type: ignore[no-untyped-def]
        asked.update(shapes=(k.shape, v.shape), window=window_size, gqa=enable_gqa, longest=(max_q, max_k), scale=scale)
        return q

    def old(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1)):  # type: ignore[no-untyped-def]
        return new(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, scale=scale, window_size=window_size)

    attention_cuda._varlen.cache_clear()
    monkeypatch.setattr(varlen, "varlen_attn", old if older else new)
    sight = Packed.tree([[1] * 5, [2] * 7], parents=[ROOT, ROOT]).sight
    runs = runs_of(sight)
    assert runs is not None
    attend_runs(*inputs(sight, 4, 2), runs, window=3, scale=SCALE)
    attention_cuda._varlen.cache_clear()
    shape = (12, 4 if older else 2, 16)
    wanted = {"window": (2, 0), "gqa": not older, "longest": (7, 7), "scale": SCALE}
    assert asked == {"shapes": (shape, shape), **wanted}


def test_a_torch_without_windows_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_cuda, "_varlen", lambda: None)
    sight = Packed.tree([[1] * 5]).sight
    runs = runs_of(sight)
    assert runs is not None
    with pytest.raises(UnsupportedError, match="knows no windows"):
        attend_runs(*inputs(sight, 1, 1), runs, window=None, scale=1.0)


def test_the_variable_length_kernel_here_knows_windows() -> None:
    assert attention_cuda._varlen() is not None


def a_pack(kind: str) -> Packed:
    lengths = [300, 1, 129, 70]
    match kind:
        case "documents":
            return Packed.tree([[1] * n for n in lengths], parents=[ROOT] * 4)
        case "images":
            return Packed.tree([[1] * n for n in lengths], parents=[ROOT] * 4, causal=False)
        case _:
            tree = Packed.tree([[1] * n for n in lengths], parents=[ROOT, 0, 0, 2], causal=[True, False, False, True])
            return Packed.join([tree, Packed.tree([[2] * 40])])


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["documents", "images", "forest", "forest with extra keys"])
@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("shape", [(4, 4, 64), (4, 2, 64), (2, 1, 8)])
@pytest.mark.parametrize("bent", [False, True])
def test_on_a_gpu_values_and_gradients_are_the_references(
    dtype: torch.dtype, kind: str, dropped: bool, shape: tuple[int, int, int], bent: bool
) -> None:
    sight = a_pack(kind).sight
    sight = sight.with_extra(5) if "extra" in kind else sight
    for window in (None, 1, 50):
        dropout = dropout_of(sight) if dropped else None
        softcap = 1.5 if bent else None
        given_ = inputs(sight, *shape[:2], width=shape[2]) + (
            [torch.linspace(-1, 1, shape[0]).double()] if bent else []
        )
        exact = [x.requires_grad_() for x in given_]
        asked = Asked(window, SCALE, dropout, softcap)
        expected = attend_reference(*exact[:3], sight, asked._replace(sinks=exact[3] if bent else None))
        upstream = torch.randn_like(expected)
        ours = [x.detach().to("cuda", dtype).requires_grad_() for x in exact[:3]]
        ours += [x.detach().float().cuda().requires_grad_() for x in exact[3:]]
        there = sight.to("cuda")
        if dropout is not None:
            moved = (x.cuda() for x in (dropout.query_keys, dropout.key_keys, dropout.place))
            dropout = AttentionDropout(dropout.p, *moved)
        actual = attend_on_cuda(*ours[:3], there, asked._replace(dropout=dropout, sinks=ours[3] if bent else None))
        assert actual.dtype == dtype
        pairs = [(actual, expected)]
        pairs += zip(
            torch.autograd.grad(actual, ours, upstream.to("cuda", dtype)),
            torch.autograd.grad(expected, exact, upstream),
            strict=True,
        )
        for a, b in pairs:
            error = (a.double().cpu() - b).norm() / b.norm().clamp(min=1e-6)
            assert error < (2e-2 if dtype == torch.bfloat16 else 1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore")
def test_on_a_gpu_new_lengths_compile_nothing_new() -> None:
    graphs = []
    for lengths in ([300, 40, 9], [500, 33], [200, 100, 50, 7]):
        sight = Packed.tree([[1] * n for n in lengths], parents=range(-1, len(lengths) - 1)).sight.to("cuda")
        q, k, v = (x.to("cuda", torch.bfloat16) for x in inputs(sight, 4, 2, width=64))
        attend_on_cuda(q, k, v, sight, Asked(None, SCALE))
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs == [graphs[0]] * 3
