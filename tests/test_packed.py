from __future__ import annotations

from dataclasses import replace

import jaxtyping
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from danlu.packed import ROOT, Packed, Targets
from danlu.sight import ANYWHERE, Sight
from strategies import forests, keyed, same, targets, windows


def ancestors(packed: Packed, segment: int) -> list[int]:
    parents, found = packed.parent.tolist(), []
    while parents[segment] != ROOT:
        segment = parents[segment]
        found.append(segment)
    return found


def described(packed: Packed, window: int | None = None) -> Tensor:
    """The rule: a segment sees itself, causally or fully, and every token of its ancestors; nothing else."""
    bounds = packed.cu_seqlens.tolist()
    place = [(n, row - bounds[n]) for n in range(packed.num_segments) for row in range(bounds[n], bounds[n + 1])]
    before = [sum(bounds[a + 1] - bounds[a] for a in ancestors(packed, n)) for n in range(packed.num_segments)]

    def sees(query: tuple[int, int], key: tuple[int, int]) -> bool:
        (segment, index), (other, other_index) = query, key
        if window is not None and abs(before[segment] + index - before[other] - other_index) >= window:
            return False
        if other == segment:
            return not packed.causal[segment] or other_index <= index
        return other in ancestors(packed, segment)

    return torch.tensor([[sees(q, k) for k in place] for q in place], dtype=torch.bool).reshape(len(place), len(place))


def drawn(sight: Sight) -> Tensor:
    """How often the calls bring each query and key together."""
    times = torch.zeros(len(sight.query_offset), len(sight.key_offset), dtype=torch.int64)
    for q0, q1, k0, k1, causal in sight.calls.tolist():
        block = torch.ones(q1 - q0, k1 - k0, dtype=torch.int64)
        times[q0:q1, k0:k1] += block.tril() if causal else block
    return times


@given(forests(), windows())
def test_the_interval_rule_is_the_rule_in_words(packed: Packed, window: int | None) -> None:
    assert torch.equal(packed.sight.mask(window), described(packed, window))


@given(forests())
def test_calls_bring_each_visible_pair_together_once_and_no_other(packed: Packed) -> None:
    assert torch.equal(drawn(packed.sight), described(packed).long())


@given(forests(max_segments=8))
def test_calls_do_not_grow_with_depth_times_children(packed: Packed) -> None:
    assert len(packed.sight.calls) <= 2 * packed.num_segments


@given(forests(), windows())
def test_visible_pairs_are_the_masks(packed: Packed, window: int | None) -> None:
    assert packed.visible_pairs(window) == int(described(packed, window).sum())


@given(forests(min_segments=1), st.integers(0, 3), st.data())
def test_extra_keys_are_seen_by_their_rows_whatever_the_window(packed: Packed, num: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(packed)))
    stop = data.draw(st.integers(start, len(packed)))
    window = data.draw(windows())
    once = packed.sight.with_extra(num, (start, stop))
    both = once.with_extra(2)
    rows = torch.arange(len(packed))[:, None]
    extra = ((rows >= start) & (rows < stop)).expand(-1, num)
    everywhere = torch.ones(len(packed), 2, dtype=torch.bool)
    assert torch.equal(once.mask(window), torch.cat([extra, described(packed, window)], 1))
    assert torch.equal(both.mask(window), torch.cat([everywhere, once.mask(window)], 1))
    assert torch.equal(drawn(both), both.mask().long())
    assert (both.key_offset[: 2 + num] == ANYWHERE).all()


@given(forests(), forests())
def test_across_forests_a_tree_sees_its_like_and_no_other(ours: Packed, theirs: Packed) -> None:
    if len(ours.trees) != len(theirs.trees):
        with pytest.raises(ValueError, match="tree by tree"):
            ours.cross(theirs)
        return
    sight = ours.cross(theirs)
    tree = [torch.tensor([t for t, (a, b) in enumerate(p.trees) for _ in range(a, b)]) for p in (ours, theirs)]
    expected = tree[0][:, None] == tree[1]
    assert torch.equal(sight.mask(), expected.reshape(len(ours), len(theirs)))
    assert torch.equal(sight.mask(1), sight.mask())
    assert torch.equal(drawn(sight), sight.mask().long())


@given(forests())
def test_split_then_join_loses_nothing(packed: Packed) -> None:
    for pack in (packed, keyed(packed)):
        trees = pack.split()
        assert [len(tree) for tree in trees] == [stop - start for start, stop in pack.trees]
        assert all(tree.parent.tolist().count(ROOT) == 1 for tree in trees)
        if trees:
            assert same(Packed.join(trees), pack)


@given(st.lists(forests(max_segments=4), max_size=4))
def test_join_then_split_loses_nothing(packs: list[Packed]) -> None:
    joined = Packed.join(packs)
    expected = [tree for pack in packs for tree in pack.split()]
    assert len(joined.split()) == len(expected)
    assert all(same(a, b) for a, b in zip(joined.split(), expected, strict=True))
    assert torch.equal(
        joined.sight.mask(), torch.block_diag(*(p.sight.mask().long() for p in packs)).bool()[: len(joined)]
    )


@given(forests(), forests(), forests())
def test_joining_may_be_done_in_any_grouping(a: Packed, b: Packed, c: Packed) -> None:
    assert same(Packed.join([Packed.join([a, b]), c]), Packed.join([a, Packed.join([b, c])]))


@given(forests())
def test_an_empty_pack_changes_nothing_it_is_joined_to(packed: Packed) -> None:
    for pack in (packed, keyed(packed)):
        assert same(Packed.join([Packed.empty(), pack, Packed.empty()]), pack) or not len(pack)


def test_keys_are_dropped_when_a_pack_with_rows_has_none() -> None:
    pack = Packed.tree([[1, 2]])
    assert Packed.join([pack, keyed(pack)]).keys is None


@given(forests())
def test_unrolling_gives_each_path_once_as_it_is_seen_in_the_pack(packed: Packed) -> None:
    packed, parents = keyed(packed), set(packed.parent.tolist())
    paths = packed.unroll()
    leaves = [n for n in range(packed.num_segments) if n not in parents]
    assert len(paths) == len(leaves)
    mask = described(packed)
    held = torch.zeros(len(packed), dtype=torch.int64)
    for (path, rows), leaf in zip(paths, leaves, strict=True):
        chain = [*reversed(ancestors(packed, leaf)), leaf]
        assert packed.segment_of_row[rows].unique_consecutive().tolist() == chain
        assert path.parent.tolist() == list(range(-1, len(chain) - 1))
        assert torch.equal(path.causal, packed.causal[chain])
        assert torch.equal(path.sample, packed.sample[chain])
        assert all(torch.equal(getattr(path, f), getattr(packed, f)[rows]) for f in ("tokens", "positions", "keys"))
        assert torch.equal(path.offsets, torch.arange(len(path)))
        assert torch.equal(path.sight.mask(), mask[rows][:, rows])
        assert not mask[rows].any(0)[[r for r in range(len(packed)) if r not in set(rows.tolist())]].any()
        held[rows] += 1
    assert (held >= 1).all()


@given(forests())
def test_a_chain_unrolls_to_itself(packed: Packed) -> None:
    for path, _ in packed.unroll():
        ((again, rows),) = path.unroll()
        assert same(again, path)
        assert torch.equal(rows, torch.arange(len(path)))


@given(forests())
def test_positions_count_along_the_path_by_default(packed: Packed) -> None:
    lengths = packed.cu_seqlens.diff().tolist()
    expected = [
        sum(lengths[a] for a in ancestors(packed, n)) + i for n in range(packed.num_segments) for i in range(lengths[n])
    ]
    assert packed.positions.tolist() == packed.offsets.tolist() == expected


def test_several_position_axes_travel_along() -> None:
    positions = torch.arange(10).reshape(5, 2)
    pack = Packed.tree([[1, 2], [3], [4, 5]], parents=[ROOT, 0, 0], positions=positions)
    joined = Packed.join([pack, Packed.empty(), pack])
    assert torch.equal(joined.positions, positions.repeat(2, 1))
    assert torch.equal(joined.split()[1].positions, positions)
    assert [path.positions[:, 1].tolist() for path, _ in pack.unroll()] == [[1, 3, 5], [1, 3, 7, 9]]
    assert pack.offsets.tolist() == [0, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ("lengths", "parents", "message"),
    [
        ([2, 0], [ROOT, 0], "segment 1 is empty"),
        ([1, 1], [ROOT], "2 segments have 1 parents"),
        ([1, 1], [1, ROOT], "segment 0 does not lie behind its parent 1"),
        ([1], [0], "segment 0 does not lie behind its parent 0"),
        ([1, 1], [ROOT, 1], "segment 1 does not lie behind its parent 1"),
        ([1, 1], [ROOT, -2], "segment 1 does not lie behind its parent -2"),
        ([1, 1, 1], [ROOT, ROOT, 0], "segment 2 does not lie behind its parent 0"),
        ([1, 1, 1, 1], [ROOT, 0, 0, 1], "segment 3 does not lie behind its parent 1"),
    ],
)
def test_what_is_no_forest_in_depth_first_order_is_refused(
    lengths: list[int], parents: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Packed.tree([[0] * length for length in lengths], parents=parents)


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=5))
def test_just_the_depth_first_orders_are_accepted(parents: list[int]) -> None:
    def visit(node: int) -> list[int]:
        return [node, *(m for child, parent in enumerate(parents) if parent == node for m in visit(child))]

    forest = all(parent < n for n, parent in enumerate(parents))
    order = [m for n, parent in enumerate(parents) if parent == ROOT for m in visit(n)] if forest else []
    try:
        Packed.tree([[0]] * len(parents), parents=parents)
        accepted = True
    except ValueError:
        accepted = False
    assert accepted == (order == list(range(len(parents))))


def test_a_field_that_does_not_fit_its_segments_is_refused() -> None:
    two = {"segments": [[1, 2], [3]], "parents": [ROOT, 0]}
    with pytest.raises(ValueError, match="2 segments have 1 sights"):
        Packed.tree(**two, causal=[True])
    with pytest.raises(ValueError, match="2 segments have 3 samples"):
        Packed.tree(**two, samples=[1, 2, 3])
    with pytest.raises(ValueError, match="3 tokens have 2 positions"):
        Packed.tree(**two, positions=torch.arange(2))


def test_the_empty_pack_has_nothing_of_everything() -> None:
    empty = Packed.empty()
    assert len(empty) == empty.num_segments == empty.visible_pairs() == empty.visible_pairs(3) == 0
    assert empty.trees == empty.split() == empty.unroll() == []
    assert empty.sight.mask().shape == (0, 0)
    assert empty.sight.with_extra(2).mask().shape == (0, 2)
    assert empty.cross(empty).mask().shape == (0, 0)
    assert same(Packed.join([]), empty)
    assert same(Packed.join([empty, empty]), empty)
    assert same(empty.to("cpu"), empty)


@given(st.data())
def test_targets_move_with_their_rows(data: st.DataObject) -> None:
    packs = data.draw(st.lists(forests(max_segments=3), max_size=3))
    parts = [data.draw(targets(pack)) for pack in packs]
    starts = [0, *torch.tensor([len(p) for p in packs], dtype=torch.int64).cumsum(0).tolist()]
    joined = Targets.join(parts, starts[:-1])
    assert len(joined) == sum(len(part) for part in parts)
    tokens = Packed.join(packs).tokens
    assert torch.equal(
        tokens[joined.rows], torch.cat([tokens[:0], *(p.tokens[t.rows] for p, t in zip(packs, parts, strict=True))])
    )
    for part, start, stop in zip(parts, starts, starts[1:], strict=False):
        again = joined.within(start, stop)
        assert all(torch.equal(getattr(again, f), getattr(part, f)) for f in ("rows", "tokens", "weights"))


def test_no_targets_are_none_of_any() -> None:
    none = Targets.none()
    assert len(none) == len(Targets.join([], [])) == len(none.to("cpu").within(0, 10)) == 0
    assert (none.rows.dtype, none.tokens.dtype, none.weights.dtype) == (torch.int64, torch.int64, torch.float32)


def test_moving_a_pack_keeps_what_describes_segments_on_the_host() -> None:
    pack = keyed(Packed.tree([[1, 2], [3]], parents=[ROOT, 0])).to("meta")
    assert {t.device.type for t in (pack.tokens, pack.positions, pack.keys)} == {"meta"}
    assert {t.device.type for t in (pack.cu_seqlens, pack.parent, pack.causal, pack.sample)} == {"cpu"}
    sight = pack.sight
    assert sight.calls.device.type == "cpu"
    assert {t.device.type for t in (sight.first, sight.end, sight.query_offset, sight.key_offset)} == {"meta"}


def test_a_shared_prompt_is_not_seen_through_a_brother() -> None:
    pack = Packed.tree([[1], [2], [3], [4]], parents=[ROOT, 0, 1, 0])
    changed = replace(pack, causal=torch.tensor([False, False, False, False]))
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]]
    assert pack.sight.mask().int().tolist() == changed.sight.mask().int().tolist() == expected


def test_shapes_and_dtypes_are_checked_here() -> None:
    """So that every other test is known to run with its annotations checked (see `checking`)."""
    rows, weights = torch.zeros(2, dtype=torch.int64), torch.ones(2)
    for wrong in ((rows, rows[:1], weights), (weights, rows, weights), (rows, rows[None], weights)):
        with pytest.raises(jaxtyping.TypeCheckError):
            Targets(*wrong)
