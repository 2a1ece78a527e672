"""The forest of segments: how every sequence travels, end to end, with no batch axis and no padding.

A *segment* is a run of tokens that see each other causally or fully. Segments form a forest. One rule says who sees
whom: *a segment sees itself, causally or fully, and every token of its ancestors; nothing else.*

Segments lie in depth-first order, a parent before its children, so what descends from a segment is the run of rows
right behind it; `danlu.sight` says what follows from that.

Axis letters, here and everywhere: T rows (tokens) of a pack, N segments, M targets, V vocabulary, D width, H query
heads, G key/value heads, K width of a head, R its rotated pairs, A position axes, B segment bounds (N + 1), C attention
calls, P extra keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from danlu.sight import ANYWHERE, Sight

ROOT = -1
"""The parent of a segment that has none."""
NO_ADAPTER = -1
"""The adapter of a segment that goes through none."""


@dataclass(frozen=True, eq=False)
class Targets:
    """What is to be predicted: pairs of a row and a token, each with a weight.

    They lie beside the tokens and are not shifted into them: a row may predict the first token of several children, and
    a row without a target never reaches the head.

    Attributes:
        rows: the row whose hidden state predicts, ``0 <= row < T``.
        tokens: what it should predict, ``0 <= token < V``.
        weights: how much it counts, ``>= 0``.
    """

    rows: Int[Tensor, " M"]
    tokens: Int[Tensor, " M"]
    weights: Float[Tensor, " M"]

    def __len__(self) -> int:
        return len(self.rows)

    @staticmethod
    def none() -> Targets:
        """No targets at all."""
        return Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0))

    @staticmethod
    def join(parts: Sequence[Targets], row_offsets: Sequence[int]) -> Targets:
        """Several packs' targets as one's, each pack's rows moved by its offset."""
        if not parts:
            return Targets.none()
        rows = torch.cat([part.rows + offset for part, offset in zip(parts, row_offsets, strict=True)])
        return Targets(rows, torch.cat([p.tokens for p in parts]), torch.cat([p.weights for p in parts]))

    def within(self, start: int, stop: int) -> Targets:
        """The targets of rows ``start:stop``, their rows counted from `start`."""
        inside = (self.rows >= start) & (self.rows < stop)
        return Targets(self.rows[inside] - start, self.tokens[inside], self.weights[inside])

    def to(self, device: torch.device | str) -> Targets:
        """The same on another device."""
        return Targets(self.rows.to(device), self.tokens.to(device), self.weights.to(device))


@dataclass(frozen=True, eq=False)
class Packed:
    """A forest of segments, its tokens end to end.

    The tensors of length T may live on any device; what describes segments stays on the host.

    Attributes:
        tokens: token ids.
        positions: one position a row, or several axes of them.
        cu_seqlens: where segments begin, and T; segment n is rows ``cu_seqlens[n]:cu_seqlens[n + 1]``, never empty.
        parent: the segment that segment n continues, or `ROOT`.
        causal: whether a token of the segment sees only itself and what comes before it, or the whole segment.
        sample: which sample the segment belongs to; randomness is keyed by it.
        keys: one random key a row, when this pass is to be random (`danlu.random.token_keys`), else None.
        key: what the keys follow from, by which rows that are put in later get theirs; None where there are none.
        adapter: the number of the model's adapter that the segment goes through, or `NO_ADAPTER`; None leaves it open.

    Example: a prompt with two answers, and a document beside it.
        >>> pack = Packed.join([
        ...     Packed.tree([[5, 6, 7], [8, 9], [3]], parents=[ROOT, 0, 0]),
        ...     Packed.tree([[1, 2]]),
        ... ])
        >>> pack.positions.tolist()
        [0, 1, 2, 3, 4, 3, 0, 1]
        >>> pack.sight.mask().int().tolist()[5]
        [1, 1, 1, 0, 0, 1, 0, 0]
    """

    tokens: Int[Tensor, " T"]
    positions: Int[Tensor, " T"] | Int[Tensor, "T A"]
    cu_seqlens: Int[Tensor, " B"]
    parent: Int[Tensor, " N"]
    causal: Bool[Tensor, " N"]
    sample: Int[Tensor, " N"]
    keys: Int[Tensor, " T"] | None = None
    adapter: Int[Tensor, " N"] | None = None
    key: int | None = None

    @staticmethod
    def tree(
        segments: Sequence[Sequence[int] | Tensor],
        *,
        parents: Sequence[int] = (ROOT,),
        causal: Sequence[bool] | bool = True,
        samples: Sequence[int] | int = 0,
        positions: Tensor | None = None,
        adapters: Sequence[int] | None = None,
    ) -> Packed:
        """A forest from its segments, in depth-first order.

        Args:
            segments: each segment's token ids; at least one token each.
            parents: each segment's parent.
            causal: each segment's sight, or one for all.
            samples: each segment's sample id, or one for all.
            positions: ``[T]`` or ``[T, A]``; by default a segment counts on from its parent's end.
            adapters: the number of each segment's adapter.

        Raises:
            ValueError: when a segment is empty, the segments are not in depth-first order, or a field does not fit
            them.
        """
        num = len(segments)
        lengths = [len(segment) for segment in segments]
        pieces = [torch.as_tensor(segment, dtype=torch.int64) for segment in segments]
        sights = [causal] * num if isinstance(causal, bool) else list(causal)
        ids = [samples] * num if isinstance(samples, int) else list(samples)
        cu_seqlens = torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)
        parent = torch.tensor(list(parents), dtype=torch.int64)
        _check_depth_first(lengths, list(parents))
        _check_counts(
            num, "segments", sights=sights, samples=ids, adapters=range(num) if adapters is None else adapters
        )
        offsets = _path_offsets(lengths, list(parents))
        if positions is not None:
            _check_counts(len(offsets), "tokens", positions=positions)
        return Packed(
            tokens=torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.int64),
            positions=offsets if positions is None else positions,
            cu_seqlens=cu_seqlens,
            parent=parent,
            causal=torch.tensor(sights, dtype=torch.bool),
            sample=torch.tensor(ids, dtype=torch.int64),
            adapter=None if adapters is None else torch.tensor(list(adapters), dtype=torch.int64),
        )

    @staticmethod
    def empty() -> Packed:
        """A pack of nothing: what a rank runs that has no more samples."""
        return Packed.tree([], parents=[])

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_segments(self) -> int:
        """How many segments there are."""
        return len(self.parent)

    @cached_property
    def bounds(self) -> list[int]:
        """`cu_seqlens` as integers."""
        bounds: list[int] = self.cu_seqlens.tolist()
        return bounds

    @cached_property
    def subtree_end(self) -> list[int]:
        """For each segment, the row behind its last descendant's last."""
        ends, parents = self.bounds[1:], self.parent.tolist()
        for n in range(self.num_segments - 1, -1, -1):
            if parents[n] != ROOT:
                ends[parents[n]] = max(ends[parents[n]], ends[n])
        return ends

    @cached_property
    def offsets(self) -> Int[Tensor, " T"]:
        """How many tokens lie before each row on its path from the root."""
        return self._host_offsets.to(self.tokens.device)

    @cached_property
    def _host_offsets(self) -> Int[Tensor, " T"]:
        lengths = [b - a for a, b in zip(self.bounds, self.bounds[1:], strict=False)]
        return _path_offsets(lengths, self.parent.tolist())

    @cached_property
    def segment_of_row(self) -> Int[Tensor, " T"]:
        """The segment each row lies in (on the host)."""
        return torch.repeat_interleave(torch.arange(self.num_segments), self.cu_seqlens.diff())

    @cached_property
    def sight(self) -> Sight:
        """Who sees whom, within this forest.

        Every segment attends to itself in one call, and every segment with descendants is attended by all of them in
        one more, whatever their number: nothing grows with depth times children.
        """
        calls = []
        for n, (start, stop) in enumerate(zip(self.bounds, self.bounds[1:], strict=False)):
            calls.append([start, stop, start, stop, int(self.causal[n])])
            if self.subtree_end[n] > stop:
                calls.append([stop, self.subtree_end[n], start, stop, 0])
        segment = self.segment_of_row
        rows = torch.arange(len(self))
        first = torch.where(self.causal[segment], rows, self.cu_seqlens[:-1][segment])
        end = torch.tensor(self.subtree_end, dtype=torch.int64)[segment]
        offsets = self._host_offsets
        table = torch.tensor(calls, dtype=torch.int64).reshape(-1, 5)
        return Sight(table, first, end, offsets, offsets).to(self.tokens.device)

    def cross(self, keys: Packed) -> Sight:
        """Who sees whom when these rows attend to another forest: a tree sees all of the tree of the same rank there.

        Raises:
            ValueError: when the forests differ in their number of trees.
        """
        ours, theirs = self.trees, keys.trees
        if len(ours) != len(theirs):
            raise ValueError(f"{len(ours)} trees cannot attend to {len(theirs)}: cross-attention goes tree by tree")
        calls = [[*q, *k, 0] for q, k in zip(ours, theirs, strict=True)]
        sizes = torch.tensor([k1 - k0 for k0, k1 in theirs], dtype=torch.int64)
        first = torch.tensor([q0 for q0, _ in ours], dtype=torch.int64).repeat_interleave(sizes)
        end = torch.tensor([q1 for _, q1 in ours], dtype=torch.int64).repeat_interleave(sizes)
        table = torch.tensor(calls, dtype=torch.int64).reshape(-1, 5)
        free = torch.full((len(keys),), ANYWHERE, dtype=torch.int64)
        return Sight(table, first, end, self._host_offsets, free).to(self.tokens.device)

    @cached_property
    def trees(self) -> list[tuple[int, int]]:
        """The rows of each tree."""
        roots = [n for n, parent in enumerate(self.parent.tolist()) if parent == ROOT]
        return [(self.bounds[n], self.subtree_end[n]) for n in roots]

    def visible_pairs(self, window: int | None = None) -> int:
        """How many (query, key) pairs attention needs; what its cost is proportional to."""
        if window is not None:
            return _visible_in_window(self, window)
        total = 0
        for q0, q1, k0, k1, causal in self.sight.calls.tolist():
            total += (q1 - q0) * (q1 - q0 + 1) // 2 if causal else (q1 - q0) * (k1 - k0)
        return total

    def split(self) -> list[Packed]:
        """Its trees, each a pack of its own; `join` puts them together again."""
        return [self._rows(start, stop) for start, stop in self.trees]

    def _rows(self, start: int, stop: int) -> Packed:
        n0, n1 = self.bounds.index(start), self.bounds.index(stop)
        parent = self.parent[n0:n1]
        return Packed(
            tokens=self.tokens[start:stop],
            positions=self.positions[start:stop],
            cu_seqlens=self.cu_seqlens[n0 : n1 + 1] - start,
            parent=torch.where(parent == ROOT, ROOT, parent - n0),
            causal=self.causal[n0:n1],
            sample=self.sample[n0:n1],
            keys=None if self.keys is None else self.keys[start:stop],
            adapter=None if self.adapter is None else self.adapter[n0:n1],
            key=self.key,
        )

    @staticmethod
    def join(packs: Sequence[Packed]) -> Packed:
        """Several forests as one, in order."""
        if not packs:
            return Packed.empty()
        rows = torch.tensor([0, *(len(pack) for pack in packs)]).cumsum(0).tolist()
        segments = torch.tensor([0, *(pack.num_segments for pack in packs)]).cumsum(0).tolist()
        held = [pack for pack in packs if len(pack)]
        keyed = [pack.keys for pack in held if pack.keys is not None]
        adapted = [pack.adapter for pack in held if pack.adapter is not None]
        return Packed(
            tokens=torch.cat([pack.tokens for pack in packs]),
            positions=torch.cat([pack.positions for pack in packs]),
            cu_seqlens=torch.cat(
                [packs[0].cu_seqlens[:1], *(p.cu_seqlens[1:] + r for p, r in zip(packs, rows, strict=False))]
            ),
            parent=torch.cat(
                [torch.where(p.parent == ROOT, ROOT, p.parent + s) for p, s in zip(packs, segments, strict=False)]
            ),
            causal=torch.cat([pack.causal for pack in packs]),
            sample=torch.cat([pack.sample for pack in packs]),
            keys=torch.cat(keyed) if held and len(keyed) == len(held) else None,
            adapter=torch.cat(adapted) if held and len(adapted) == len(held) else None,
            key=held[0].key if len({pack.key for pack in held}) == 1 else None,
        )

    def unroll(self) -> list[tuple[Packed, Int[Tensor, " L"]]]:
        """Every path from a root to a leaf as a pack of its own, and the rows here that it is made of.

        It is what one would have to compute without shared prompts: the reference that packed results are compared
        with.
        """
        parents = self.parent.tolist()
        inner = set(parents)
        paths = []
        for leaf in (n for n in range(self.num_segments) if n not in inner):
            chain = [leaf]
            while parents[chain[-1]] != ROOT:
                chain.append(parents[chain[-1]])
            chain.reverse()
            rows = torch.cat([torch.arange(self.bounds[n], self.bounds[n + 1]) for n in chain])
            sizes = torch.tensor([0, *(self.bounds[n + 1] - self.bounds[n] for n in chain)])
            here = rows.to(self.tokens.device)
            path = Packed(
                tokens=self.tokens[here],
                positions=self.positions[here],
                cu_seqlens=sizes.cumsum(0),
                parent=torch.arange(len(chain)) - 1,
                causal=self.causal[chain],
                sample=self.sample[chain],
                keys=None if self.keys is None else self.keys[here],
                adapter=None if self.adapter is None else self.adapter[chain],
                key=self.key,
            )
            paths.append((path, rows))
        return paths

    def to(self, device: torch.device | str) -> Packed:
        """The same with its rows on another device."""
        keys = None if self.keys is None else self.keys.to(device)
        return replace(self, tokens=self.tokens.to(device), positions=self.positions.to(device), keys=keys)


def _check_counts(num: int, of: str, **fields: Sequence[object] | Tensor) -> None:
    for name, field in fields.items():
        if len(field) != num:
            raise ValueError(f"{num} {of} have {len(field)} {name}")


def _check_depth_first(lengths: list[int], parents: list[int]) -> None:
    if len(lengths) != len(parents):
        raise ValueError(f"{len(lengths)} segments have {len(parents)} parents")
    path: list[int] = []
    for n, (length, parent) in enumerate(zip(lengths, parents, strict=True)):
        if length < 1:
            raise ValueError(f"segment {n} is empty")
        while path and path[-1] != parent:
            path.pop()
        if parent != ROOT and not path:
            raise ValueError(f"segment {n} does not lie behind its parent {parent}, depth first")
        path.append(n)


def _path_offsets(lengths: list[int], parents: list[int]) -> Int[Tensor, " T"]:
    starts: list[int] = []
    for parent in parents:
        starts.append(0 if parent == ROOT else starts[parent] + lengths[parent])
    pieces = [torch.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    return torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.int64)


def _visible_in_window(packed: Packed, window: int) -> int:
    offsets = packed._host_offsets
    total = 0
    for q0, q1, k0, k1, causal in packed.sight.calls.tolist():
        query, key = offsets[q0:q1], offsets[k0:k1]
        low = torch.searchsorted(key, query - window + 1)
        high = torch.searchsorted(key, query + 1 if causal else query + window)
        total += int((high - low).sum())
    return total
