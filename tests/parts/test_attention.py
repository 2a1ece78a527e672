"""The contract of every attention back-end that runs on a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from danlu.packed import ROOT, Packed
from danlu.parts.attention import Asked, AttentionDropout, Backend, attend_reference, attention, backend_for
from danlu.parts.attention_calls import TILE_ROWS, tiles
from danlu.parts.attention_cpu import attend_on_cpu
from danlu.parts.attention_fused import attend_fused, fused_attention, fused_attention_backward
from danlu.parts.attention_tiled import attend_tiled, tiled_attention, tiled_attention_backward
from danlu.parts.compiled import compilation
from danlu.random import fold, place_key, token_keys
from danlu.sight import Sight
from strategies import forests, keyed, windows

BACKENDS: dict[str, Backend] = {"fused": attend_fused, "tiled": attend_tiled, "chosen": attend_on_cpu}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 3e-2}
HEADS, WIDTH = 4, 8
PLACE = torch.tensor(place_key("layers.3.self_attn.dropout"), dtype=torch.int32)


@contextmanager
def tile_rows(size: int) -> Iterator[None]:
    """Tiles of a few rows, so that small forests are cut too."""
    with patch.object(tiles, "__defaults__", (size,)):
        yield


@dataclass
class Case:
    """One call of attention."""

    q: Tensor
    k: Tensor
    v: Tensor
    sight: Sight
    window: int | None = None
    dropout: AttentionDropout | None = None
    scale: float = WIDTH**-0.5
    softcap: float | None = None
    sinks: Tensor | None = None

    @staticmethod
    def of(
        sight: Sight,
        *,
        groups: int = HEADS,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
        window: int | None = None,
        keys: tuple[Tensor, Tensor] | None = None,
        softcap: float | None = None,
        sinks: bool = False,
    ) -> Case:
        generator = torch.Generator().manual_seed(seed)
        sizes = ((len(sight.query_offset), HEADS), (len(sight.key_offset), groups), (len(sight.key_offset), groups))
        q, k, v = (torch.randn(*size, WIDTH, generator=generator, dtype=torch.float64).to(dtype) for size in sizes)
        dropout = None if keys is None else AttentionDropout(0.4, *keys, PLACE)
        sunk = torch.randn(HEADS, generator=generator, dtype=q.dtype) if sinks else None
        return Case(q, k, v, sight, window, dropout, softcap=softcap, sinks=sunk)

    def run(self, backend: Backend) -> list[Tensor]:
        """The output and, of a fixed weighting of it, the gradients of queries, keys, values and sinks."""
        given_ = [x.clone().requires_grad_() for x in (self.q, self.k, self.v, self.sinks) if x is not None]
        q, k, v, *sinks = given_
        out = backend(
            q,
            k,
            v,
            self.sight,
            Asked(self.window, self.scale, self.dropout, self.softcap, sinks[0] if sinks else None),
        )
        weighting = torch.linspace(-1, 1, out.numel()).reshape(out.shape).sin().to(out.dtype)
        return [out.detach(), *torch.autograd.grad((out * weighting).sum(), given_)]


def same(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    names = ("output", "dq", "dk", "dv", "dsinks")[: len(expected)]
    for name, a, b in zip(names, found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")


@st.composite
def cases(draw: st.DrawFn, dtype: torch.dtype) -> Case:
    packed = draw(forests())
    extra = draw(st.integers(0, 2))
    sight = packed.sight
    if extra:
        start = draw(st.integers(0, len(packed)))
        sight = sight.with_extra(extra, (start, draw(st.integers(start, len(packed)))))
    keys = None
    if draw(st.booleans()):
        own = keyed(packed).keys
        learned = token_keys(fold(9), torch.zeros(extra, dtype=torch.int64), torch.arange(extra))
        keys = (own, torch.cat([learned, own]))
    return Case.of(
        sight,
        groups=draw(st.sampled_from([1, 2, HEADS])),
        dtype=dtype,
        seed=draw(st.integers(0, 99)),
        window=draw(windows()),
        keys=keys,
        softcap=draw(st.sampled_from([None, 1.5])),
        sinks=draw(st.booleans()),
    )


@settings(max_examples=60)
@given(cases(torch.float64))
def test_the_reference_is_softmax_over_what_is_seen(case: Case) -> None:
    """The definition once more, a query and a head at a time, in Python's own numbers."""
    out, mask = case.run(attend_reference)[0], case.sight.mask(case.window)
    share = HEADS // case.k.shape[1]
    for row in range(len(out)):
        seen = mask[row].nonzero().flatten().tolist()
        for head in range(HEADS):
            scores = {j: case.scale * float(case.q[row, head] @ case.k[j, head // share]) for j in seen}
            if case.softcap is not None:
                scores = {j: case.softcap * math.tanh(s / case.softcap) for j, s in scores.items()}
            total = sum(math.exp(s) for s in scores.values())
            total += 0.0 if case.sinks is None else math.exp(case.sinks[head])
            expected = torch.zeros(WIDTH, dtype=torch.float64)
            for j, score in scores.items():
                kept = (
                    1.0
                    if case.dropout is None
                    else float(case.dropout.scale(slice(row, row + 1), slice(j, j + 1), HEADS)[head])
                )
                expected += kept * math.exp(score) / total * case.v[j, head // share]
            torch.testing.assert_close(out[row, head], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", BACKENDS)
def test_output_and_gradients_are_the_references(name: str, dtype: torch.dtype) -> None:
    @settings(max_examples=80)
    @given(cases(dtype), st.sampled_from([1, 2, 3, 256]))
    def check(case: Case, size: int) -> None:
        with tile_rows(size):
            same(case.run(BACKENDS[name]), case.run(attend_reference), TOLERANCE[dtype])

    check()


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("window", [None, 3, TILE_ROWS + 10])
def test_more_rows_than_a_tile_holds(name: str, window: int | None) -> None:
    long = TILE_ROWS + 70
    pack = keyed(Packed.tree([[0] * 5, [0] * long, [0] * 9], parents=[ROOT, 0, 1], causal=[False, True, False]))
    for keys in (None, (pack.keys, pack.keys)):
        for softcap, sinks in ((None, False), (2.0, False), (None, True)):
            case = Case.of(pack.sight, groups=2, window=window, keys=keys, softcap=softcap, sinks=sinks)
            same(case.run(BACKENDS[name]), case.run(attend_reference), TOLERANCE[torch.float64])


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize(("softcap", "sinks"), [(None, False), (2.0, False), (None, True)])
def test_half_precision_is_near_single(name: str, window: int | None, softcap: float | None, sinks: bool) -> None:
    pack = Packed.tree(
        [[0] * 6, [0] * 5, [0] * 4, [0] * 7], parents=[ROOT, 0, 0, ROOT], causal=[False, True, True, True]
    )
    case = Case.of(pack.sight, groups=2, dtype=torch.bfloat16, window=window, softcap=softcap, sinks=sinks)
    case.sinks = None if case.sinks is None else case.sinks.float()  # a parameter
    wide = replace(case, q=case.q.float(), k=case.k.float(), v=case.v.float())
    found = case.run(BACKENDS[name])
    assert all(x.dtype == torch.bfloat16 for x in found[:4])
    assert all(x.dtype == torch.float32 for x in found[4:])
    same([x.float() for x in found], wide.run(attend_reference), TOLERANCE[torch.bfloat16])


def blind() -> list[tuple[Sight, int | None]]:
    """Sights in which some rows, or all of them, see nothing."""
    pack = Packed.tree([[0] * 3, [0] * 4, [0] * 2], parents=[ROOT, 0, ROOT])
    none, rows = pack.sight, torch.arange(9)
    nobody = torch.zeros(9, dtype=torch.int64)
    nothing = Sight(torch.zeros(0, 5, dtype=torch.int64), nobody, nobody, none.query_offset, none.key_offset)
    some = Sight(
        torch.tensor([[2, 5, 1, 4, 0]]), *(torch.tensor([0, n, n, n, 0, 0, 0, 0, 0]) for n in (2, 5)), rows, rows
    )
    away = Sight(torch.tensor([[0, 9, 0, 3, 0]]), nobody, torch.tensor([9, 9, 9, *[0] * 6]), rows + 2, rows)
    keyless = Sight(torch.tensor([[0, 9, 0, 0, 0]]), nobody[:0], nobody[:0], none.query_offset, none.key_offset[:0])
    return [(nothing, None), (some, None), (some, 2), (away, 4), (keyless, None), (keyless, 1)]


@pytest.mark.parametrize("name", [*BACKENDS, "reference"])
@pytest.mark.parametrize("number", range(len(blind())))
@pytest.mark.parametrize("size", [2, 256])
def test_a_row_that_sees_nothing_gets_zero_and_gives_no_gradient(name: str, number: int, size: int) -> None:
    sight, window = blind()[number]
    case = Case.of(sight, groups=2, window=window)
    backend = BACKENDS.get(name, attend_reference)
    with tile_rows(size):
        out, dq, dk, dv = case.run(backend)
    seen = sight.mask(window)
    assert not seen.any(1).all()
    assert not out[~seen.any(1)].any()
    assert not dq[~seen.any(1)].any()
    assert not dk[~seen.any(0)].any()
    assert not dv[~seen.any(0)].any()
    assert all(x.isfinite().all() for x in (out, dq, dk, dv))
    same([out, dq, dk, dv], case.run(attend_reference), 1e-9)
    sunk = Case.of(sight, groups=2, window=window, softcap=1.5, sinks=True)
    with tile_rows(size):
        found = sunk.run(backend)
    assert not found[0][~seen.any(1)].any()
    same(found, sunk.run(attend_reference), 1e-9)


@settings(max_examples=40)
@given(forests(min_segments=2), windows(), st.data())
def test_what_is_not_seen_changes_no_bit(packed: Packed, window: int | None, data: st.DataObject) -> None:
    case = Case.of(packed.sight, window=window)
    row = data.draw(st.integers(0, len(packed) - 1))
    hidden = ~packed.sight.mask(window)[row]
    other = Case(case.q, case.k.clone(), case.v.clone(), case.sight, window)
    other.k[hidden], other.v[hidden] = 7.0, -7.0
    for backend in (*BACKENDS.values(), attend_reference):
        assert torch.equal(case.run(backend)[0][row], other.run(backend)[0][row])


@settings(max_examples=40)
@given(forests(min_segments=1, max_trees=3), forests(min_segments=1, max_trees=3), st.sampled_from([1, 3, 256]))
def test_attending_to_another_forest(ours: Packed, theirs: Packed, size: int) -> None:
    theirs = Packed.join(theirs.split() * 3)
    theirs = Packed.join(theirs.split()[: len(ours.trees)])
    if len(theirs.trees) == len(ours.trees):
        case = Case.of(ours.cross(theirs), groups=2, window=2)
        with tile_rows(size):
            for backend in BACKENDS.values():
                same(case.run(backend), case.run(attend_reference), 1e-9)


def test_scores_of_any_size_overflow_nowhere() -> None:
    pack = Packed.tree([[0] * 4, [0] * 4], parents=[ROOT, 0])
    case = Case.of(pack.sight)
    case.q *= 3e3  # the scores' exponentials overflow
    for backend in BACKENDS.values():
        same(case.run(backend), case.run(attend_reference), 1e-8)


def test_a_cap_far_above_all_scores_and_a_sink_far_below_change_nothing() -> None:
    case = Case.of(Packed.tree([[0] * 6, [0] * 4], parents=[ROOT, 0]).sight, groups=2, window=4)
    for changed in (replace(case, softcap=1e6), replace(case, sinks=torch.full((HEADS,), -1e3).double())):
        for backend in (*BACKENDS.values(), attend_reference):
            same(changed.run(backend)[:4], case.run(attend_reference), 1e-8)


def test_key_heads_serve_neighbouring_query_heads() -> None:
    case = Case.of(Packed.tree([[0] * 5]).sight, groups=2)
    wide = Case(case.q, case.k.repeat_interleave(2, 1), case.v.repeat_interleave(2, 1), case.sight)
    for backend in (*BACKENDS.values(), attend_reference):
        torch.testing.assert_close(case.run(backend)[0], wide.run(backend)[0], rtol=1e-12, atol=1e-12)


def test_the_scale_is_of_the_heads_width_by_default_and_a_cpu_has_its_back_end() -> None:
    case = Case.of(Packed.tree([[0] * 5]).sight)
    expected = case.run(attend_reference)[0]
    torch.testing.assert_close(attention(case.q, case.k, case.v, case.sight), expected)
    assert not torch.allclose(attention(case.q, case.k, case.v, case.sight, scale=1.0), expected)
    assert torch.equal(attention(case.q, case.k, case.v, case.sight, backend=attend_reference), expected)
    assert backend_for(torch.device("cpu")) is attend_on_cpu
    assert backend_for(torch.device("meta")) is attend_reference


def test_tiles_hold_every_visible_pair_once() -> None:
    @given(forests(), windows(), st.integers(0, 2), st.integers(1, 4))
    def check(packed: Packed, window: int | None, extra: int, size: int) -> None:
        sight = packed.sight.with_extra(extra)
        times = torch.zeros(len(packed), len(packed) + extra, dtype=torch.int64)
        given_ = sight.calls, sight.query_offset, sight.key_offset, -1 if window is None else window
        for tile in tiles(*given_, size):
            key = torch.arange(tile.keys.stop - tile.keys.start)
            seen = (key >= tile.low[:, None]) & (key < tile.high[:, None])
            assert tile.rows.stop - tile.rows.start <= size
            assert seen[:, 0].any()
            assert seen[:, -1].any()
            times[tile.rows, tile.keys] += seen
        assert torch.equal(times, sight.mask(window).long())

    check()


def operator_arguments(*, dropped: bool) -> list[tuple[Callable[..., object], tuple[object, ...]]]:
    pack = keyed(Packed.tree([[0] * 3, [0] * 2, [0] * 2], parents=[ROOT, 0, 0]))
    case, sight = Case.of(pack.sight, groups=2), pack.sight
    q, k, v = (x.requires_grad_() for x in (case.q, case.k, case.v))
    table = (sight.calls, sight.query_offset, sight.key_offset, 3, 0.3)
    drop = (pack.keys, pack.keys, PLACE, 0.4, 1.5) if dropped else (None, None, None, 0.0, None)
    sinks = torch.linspace(-1, 1, HEADS, dtype=torch.float64) if dropped else None
    grad = torch.randn(q.shape, dtype=torch.float64)
    plain = tuple(x.detach() for x in (q, k, v))
    fused, tiled = fused_attention(*plain, *table, sinks), tiled_attention(*plain, *table, *drop, sinks)
    trained = None if sinks is None else sinks.clone().requires_grad_()
    return [
        (fused_attention, (q, k, v, *table, trained)),
        (tiled_attention, (q, k, v, *table, *drop, trained)),
        (fused_attention_backward, (grad, *plain, *fused, *table)),
        (tiled_attention_backward, (grad, *plain, *tiled, *table, *drop)),
    ]


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("number", range(4))
def test_operators_are_what_the_compiler_takes_them_for(number: int, dropped: bool) -> None:
    operator, arguments = operator_arguments(dropped=dropped)[number]
    torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("dropped", [False, True])
def test_compiled_tiles_agree(dropped: bool) -> None:
    pack = keyed(Packed.tree([[0] * 6, [0] * 4, [0] * 5], parents=[ROOT, 0, 0], causal=[False, True, True]))
    keys = (pack.keys, torch.cat([pack.keys[:2], pack.keys])) if dropped else None
    # The first tile is of no special size (not square, not all rows), so that one compilation serves all that follow.
    case = Case.of(pack.sight.with_extra(2, (0, 13)), groups=2, window=5, keys=keys)
    with compilation(True):
        for softcap in (None, 1.5, 4.0) if not dropped else (None,):
            capped = replace(case, softcap=softcap, sinks=None if softcap is None else torch.ones(HEADS).double())
            same(capped.run(attend_on_cpu), capped.run(attend_reference), 1e-9)
