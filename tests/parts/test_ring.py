"""Ring attention is attention: who sees whom, the values and the gradients, whatever is cut where."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.distributed as dist
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from danlu.engine.context import ProcessRing
from danlu.engine.launch import launched
from danlu.errors import UnsupportedError
from danlu.packed import ROOT, Packed
from danlu.parts import attention_cuda, attention_parts, attention_ring
from danlu.parts.attention import Asked, AttentionDropout, attend_reference, attention
from danlu.parts.attention_parts import (
    attend_part,
    attend_part_backward,
    attend_part_by_flex,
    attend_part_by_flex_backward,
)
from danlu.parts.attention_ring import Ring, RingMemory, clip, rows_in, zigzag
from ranks import run_ranks
from rings import ThreadRing, in_a_ring
from strategies import forests, keyed, windows

from .test_attention import HEADS, PLACE, WIDTH, Case, same, tile_rows
from .test_attention_cuda import dense

EXACT = 1e-12


def sizes() -> st.SearchStrategy[int]:
    return st.integers(1, 4)


@st.composite
def runs(draw: st.DrawFn, num_rows: int) -> list[tuple[int, int]]:
    """Any runs of rows, in order and apart, some of them empty."""
    bounds = sorted(draw(st.lists(st.integers(0, num_rows), min_size=2, max_size=6)))
    return list(pairwise(bounds))[::2]


@given(st.integers(0, 200), st.integers(1, 9))
def test_every_row_has_one_rank_and_all_have_as_many(num_rows: int, size: int) -> None:
    shares = zigzag(num_rows, size)
    assert len(shares) == size
    held = torch.cat([rows_in(share) for share in shares])
    assert torch.equal(held.sort().values, torch.arange(num_rows))
    counts = [len(rows_in(share)) for share in shares]
    assert max(counts) - min(counts) <= 2
    if num_rows >= 2 * size:
        assert all(start < stop for share in shares for start, stop in share)
    assert all(share[0][1] <= share[1][0] for share in shares)


@pytest.mark.parametrize("size", [2, 3, 8])
def test_a_causal_document_is_as_much_work_for_each_rank_at_each_turn(size: int) -> None:
    """Pairs of a query and a key, of turns in which nobody attends to its own keys."""
    sight, shares = Packed.tree([[0] * 16 * size]).sight, zigzag(16 * size, size)
    work = torch.tensor([[int(clip(sight, mine, theirs).mask().sum()) for theirs in shares] for mine in shares])
    assert len(set(work[~torch.eye(size, dtype=torch.bool)].tolist())) == 1
    assert len(set(work.diagonal().tolist())) == 1


def written_out(table: Tensor, shape: tuple[int, int]) -> Tensor:
    """How often calls let each query see each key."""
    times = torch.zeros(shape, dtype=torch.int64)
    for q0, q1, k0, k1, causal in table.tolist():
        seen = torch.ones(q1 - q0, k1 - k0, dtype=torch.int64)
        assert not causal or seen.shape[0] == seen.shape[1]
        times[q0:q1, k0:k1] += seen.tril() if causal else seen
    return times


@settings(max_examples=150)
@given(forests(), windows(), st.integers(0, 2), st.data())
def test_a_clip_is_that_part_of_the_mask(packed: Packed, window: int | None, extra: int, data: st.DataObject) -> None:
    """Any runs of queries and of keys, also those that cut a call's diagonal."""
    whole = packed.sight.with_extra(extra)
    queries, keys = data.draw(runs(len(packed))), data.draw(runs(len(packed) + extra))
    part = clip(whole, queries, keys)
    rows, columns = rows_in(queries), rows_in(keys)
    assert torch.equal(part.mask(window), whole.mask(window)[rows][:, columns])
    times = written_out(part.calls, (len(rows), len(columns)))
    assert torch.equal(times, part.mask().long())  # once each: the calls' results are merged


@settings(max_examples=60)
@given(forests(min_segments=1), sizes(), windows())
def test_the_ranks_parts_make_up_the_whole(packed: Packed, size: int, window: int | None) -> None:
    shares, mask = zigzag(len(packed), size), torch.zeros(len(packed), len(packed), dtype=torch.bool)
    for mine in shares:
        for theirs in shares:
            rows, columns = rows_in(mine), rows_in(theirs)
            mask[rows[:, None], columns] = clip(packed.sight, mine, theirs).mask(window)
    assert torch.equal(mask, packed.sight.mask(window))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Packed, Case]:
    packed = draw(forests(min_segments=1, max_length=9))
    packed = keyed(packed) if draw(st.booleans()) else packed
    case = Case.of(
        packed.sight,
        groups=draw(st.sampled_from([1, 2, HEADS])),
        seed=draw(st.integers(0, 99)),
        window=draw(windows()),
        keys=None if packed.keys is None else (packed.keys, packed.keys),
        softcap=draw(st.sampled_from([None, 1.5])),
        sinks=draw(st.booleans()),
    )
    return packed, case


def on_one_rank(ring: Ring, packed: Packed, case: Case, again: bool) -> tuple[Tensor, list[Tensor]]:
    """A rank's rows, and what `Case.run` gives of them; `again` computes forward twice, as checkpoints do."""
    upstream = torch.linspace(-1, 1, case.q.numel()).reshape(case.q.shape).sin().to(case.q.dtype)
    memory, dropout = RingMemory(packed, ring), case.dropout
    rows = rows_in(memory.runs)
    mine = [x[rows].clone().requires_grad_() for x in (case.q, case.k, case.v)]
    mine += [] if case.sinks is None else [case.sinks.clone().requires_grad_()]
    if dropout is not None:
        dropout = AttentionDropout(dropout.p, dropout.query_keys[rows], dropout.query_keys[rows], dropout.place)

    def attend(q: Tensor, k: Tensor, v: Tensor, *sinks: Tensor) -> Tensor:
        return attention(
            q,
            k,
            v,
            memory.sight(packed),
            window=case.window,
            scale=case.scale,
            dropout=dropout,
            softcap=case.softcap,
            sinks=sinks[0] if sinks else None,
            backend=memory.backend(0),
        )

    out = checkpoint(attend, *mine, use_reentrant=False) if again else attend(*mine)
    return rows, [out.detach(), *torch.autograd.grad((out * upstream[rows]).sum(), mine)]


def put_together(case: Case, found: list[tuple[Tensor, list[Tensor]]]) -> list[Tensor]:
    """All ranks' rows in one, and the sum of what each says of the sinks."""
    whole = [torch.empty_like(x) for x in (case.q, case.q, case.k, case.v)]
    for rows, parts in found:
        for total, part in zip(whole, parts, strict=False):
            total[rows] = part
    sunk = [torch.stack([parts[4] for _, parts in found]).sum(0)] if case.sinks is not None else []
    return whole + sunk


def run_in_a_ring(packed: Packed, case: Case, size: int, *, again: bool = False) -> list[Tensor]:
    """`Case.run` by ranks that hold some rows each, put together."""
    return put_together(case, in_a_ring(size, lambda ring: on_one_rank(ring, packed, case, again)))


@settings(max_examples=60)
@given(cases(), sizes(), st.sampled_from([2, 256]), st.booleans())
def test_output_and_gradients_are_those_of_one_rank(
    made: tuple[Packed, Case], size: int, tile: int, again: bool
) -> None:
    packed, case = made
    with tile_rows(tile):
        found = run_in_a_ring(packed, case, size, again=again)
    same(found, case.run(attend_reference), EXACT)


def random_case(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Packed, Case]:
    """A forest of some hundred rows, in turn with and without each thing that attention knows."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 40, (9,), generator=generator).tolist()
    causal = (torch.rand(9, generator=generator) < 0.7).tolist()
    packed = keyed(Packed.tree([[0] * n for n in lengths], parents=[ROOT, 0, 1, 1, 0, ROOT, 5, 5, ROOT], causal=causal))
    case = Case.of(
        packed.sight,
        groups=(1, 2, HEADS)[seed % 3],
        dtype=dtype,
        seed=seed,
        window=(None, 11, 60)[seed // 2 % 3],
        keys=(packed.keys, packed.keys) if seed % 2 else None,
        softcap=1.5 if seed % 4 == 2 else None,
        sinks=seed % 5 > 2,
    )
    return packed, case


def over_processes(made: list[tuple[Packed, Case]]) -> list[tuple[Tensor, list[Tensor]]]:
    ring = ProcessRing.of(launched(), dist.group.WORLD)
    return [on_one_rank(ring, packed, case, number % 2 == 1) for number, (packed, case) in enumerate(made)]


@pytest.mark.parametrize("size", [2, 3])
def test_processes_that_hand_on_by_gloo_are_one_rank(size: int) -> None:
    made = [random_case(seed) for seed in range(12)]
    half = random_case(1, torch.bfloat16)
    found = run_ranks(over_processes, size, [*made, half])
    for number, (_, case) in enumerate(made):
        together = put_together(case, [rank[number] for rank in found])
        expected = case.run(attend_reference)
        same(together, expected, EXACT)
        for ours, theirs in zip(together, expected, strict=True):
            assert (ours - theirs).norm() <= EXACT * theirs.norm()
    packed, case = half  # processes hand on what threads do
    for ours, theirs in zip(put_together(case, [r[-1] for r in found]), run_in_a_ring(packed, case, size), strict=True):
        assert torch.equal(ours, theirs)


@settings(max_examples=20)
@given(cases(), st.sampled_from([2, 3]))
def test_parts_of_the_kind_that_is_compiled_agree(made: tuple[Packed, Case], size: int) -> None:
    packed, case = made
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_parts, "is_compiling", lambda: True)
        patch.delattr(attention_parts, "fused_attention")
        found = run_in_a_ring(packed, case, size)
    same(found, case.run(attend_reference), EXACT)


def test_half_precision_is_near_single_and_sums_in_single() -> None:
    packed = Packed.tree([[0] * 40])
    case = Case.of(packed.sight, groups=1, dtype=torch.bfloat16)
    wide = replace(case, q=case.q.float(), k=case.k.float(), v=case.v.float())
    found = run_in_a_ring(packed, case, 4)
    assert all(x.dtype == torch.bfloat16 for x in found)
    same([x.float() for x in found], wide.run(attend_reference), 3e-2)


def test_nothing_is_computed_where_nobody_sees_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents that no cut goes through: every rank is on its own, though keys still travel."""
    packed, computed = Packed.tree([[0] * 4] * 4, parents=[ROOT] * 4), []

    def noted(q: Tensor, k: Tensor, *rest: object) -> tuple[Tensor, Tensor]:
        computed.append(len(k))
        return attend_part(q, k, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(attention_ring, "attend_part", noted)
    case = Case.of(packed.sight)
    same(run_in_a_ring(packed, case, 2), case.run(attend_reference), EXACT)
    assert computed == [8, 8]


def test_what_travels_is_keys_and_values_and_once_more_with_their_gradients() -> None:
    packed = Packed.tree([[0] * 18])

    def one(ring: ThreadRing) -> tuple[int, list[tuple[int, ...]]]:
        memory = RingMemory(packed, ring)
        rows = len(rows_in(memory.runs))
        q = torch.randn(rows, HEADS, WIDTH, dtype=torch.float64, requires_grad=True)
        out = attention(q, q[:, :2], q[:, 2:], memory.sight(packed), backend=memory.backend(0))
        forward = len(ring.sent)
        out.sum().backward()
        return forward, ring.sent

    for forward, sent in in_a_ring(3, one):
        assert forward == 2  # one fewer than ranks: nobody is sent its own
        assert sent == [(2, 6, 2, WIDTH)] * (2 + 2 + 3)


@given(made=cases())
def test_parts_through_flex_attention_are_the_same(made: tuple[Packed, Case]) -> None:
    """On plain operations in the kernel's place; gradients by another way, from the same merged results."""
    packed, case = made
    assume(len(packed) >= 4)
    asked = Asked(case.window, case.scale, case.dropout, case.softcap)
    mine, theirs = zigzag(len(packed), 2)
    sight, rows, columns = clip(packed.sight, mine, theirs), rows_in(mine), rows_in(theirs)
    if asked.dropout is not None:
        asked = asked._replace(dropout=AttentionDropout(0.4, packed.keys[rows], packed.keys[columns], PLACE))
    q, k, v = case.q[rows], case.k[columns], case.v[columns]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_cuda, "BLOCK_ROWS", 4)
        patch.setattr(attention_cuda, "_compiled_flex", lambda: dense)
        expected, found = (f(q, k, v, sight, asked) for f in (attend_part, attend_part_by_flex))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
        # As if a part with these results had been merged: more weight elsewhere, values elsewhere.
        out, lse = expected[0] * 0.7 + 0.1, torch.logaddexp(expected[1], torch.tensor(0.3, dtype=torch.float64))
        given_ = (torch.randn_like(q), q, k, v, out, lse, sight, asked)
        for a, b in zip(attend_part_by_flex_backward(*given_), attend_part_backward(*given_), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_flex_attention_is_not_asked_of_nothing() -> None:
    q = torch.zeros(0, 1, 8)
    with pytest.raises(ValueError, match="one of each"):
        attend_part_by_flex(q, q, q, Packed.empty().sight, Asked(None, 1.0))


def test_a_device_without_parts_says_so() -> None:
    q = torch.zeros(3, 1, 8, device="meta")
    with pytest.raises(UnsupportedError, match="not there for meta"):
        attend_part(q, q, q, Packed.tree([[0] * 3]).sight, Asked(None, 1.0))
