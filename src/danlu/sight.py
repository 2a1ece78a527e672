"""Who sees whom: the one description of every attention there is.

Segments lie in depth-first order, a parent before its children, so what descends from a segment is the run of rows
right behind it. Hence the rule of `danlu.packed` needs two integers a key and no mask: **key row j is seen by the query
rows from `first[j]` up to, not including, `end[j]`**, where `first[j]` is j itself in a causal segment and the
segment's first row in a full one, and `end[j]` is where the segment's subtree ends. Learned keys, cached keys and the
keys of another forest are intervals of the same kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ANYWHERE = -(1 << 30)
"""The path offset of a key that no window hides (a learned one)."""


@dataclass(frozen=True, eq=False)
class Sight:
    """Which query rows see which key rows.

    Attributes:
        calls: ``[C, 5]`` on the host: query rows ``q0:q1`` see key rows ``k0:k1``; the last column is 1 where the two
            runs are the same tokens and see each other causally. A query row may appear in several calls, which are
            merged.
        first: the first query row that sees the key.
        end: the query row behind the last one that sees the key.
        query_offset: how many tokens lie before the query on its path; what a window measures.
        key_offset: the same of each key, below 0 where it lies before the first token; `ANYWHERE` exempts it from
            windows.
    """

    calls: Int[Tensor, "C 5"]
    first: Int[Tensor, " Tk"]
    end: Int[Tensor, " Tk"]
    query_offset: Int[Tensor, " Tq"]
    key_offset: Int[Tensor, " Tk"]

    def mask(self, window: int | None = None) -> Bool[Tensor, "Tq Tk"]:
        """The rule written out: True where the query sees the key. For tests and pictures, not for training."""
        row = torch.arange(len(self.query_offset), device=self.first.device)[:, None]
        seen = (self.first <= row) & (row < self.end)
        if window is not None:
            distance = (self.query_offset[:, None] - self.key_offset).abs()
            seen &= (distance < window) | (self.key_offset == ANYWHERE)
        return seen

    def with_extra(self, num_keys: int, rows: tuple[int, int] | None = None) -> Sight:
        """The same sight with `num_keys` keys put before all others, seen from one run of query rows (default: all)."""
        return self.behind([(torch.full((num_keys,), ANYWHERE), rows or (0, len(self.query_offset)))])

    def behind(self, extra: Sequence[tuple[Int[Tensor, " _"], tuple[int, int]]]) -> Sight:
        """The same sight with several runs of keys put before all others.

        Args:
            extra: for each the path offsets of its keys, on the host, and the run of query rows that sees them.
        """
        sizes = torch.tensor([len(keys) for keys, _ in extra], dtype=torch.int64)
        starts, stops = (torch.tensor([run[side] for _, run in extra], dtype=torch.int64) for side in (0, 1))
        begins = list(accumulate((len(keys) for keys, _ in extra), initial=0))
        calls = [[*run, k0, k0 + len(keys), 0] for k0, (keys, run) in zip(begins, extra, strict=False)]
        shifted = self.calls + torch.tensor([0, 0, begins[-1], begins[-1], 0])
        device = self.first.device
        return Sight(
            torch.cat([torch.tensor(calls, dtype=torch.int64).reshape(-1, 5), shifted]),
            torch.cat([starts.repeat_interleave(sizes).to(device), self.first]),
            torch.cat([stops.repeat_interleave(sizes).to(device), self.end]),
            self.query_offset,
            torch.cat([*(keys.to(device) for keys, _ in extra), self.key_offset]),
        )

    def to(self, device: torch.device | str) -> Sight:
        """The same on another device; the calls stay on the host."""
        moved = (t.to(device) for t in (self.first, self.end, self.query_offset, self.key_offset))
        return Sight(self.calls, *moved)


@dataclass(frozen=True, eq=False)
class Extra:
    """Keys and values of no token, that every layer attends to beside its own.

    Attributes:
        name: what they are called; under one name they are the same for as long as no weight changes.
        offsets: the path offset of each, on the host.
        runs: the runs ``start:stop`` of query rows that see them.
        keys: one random key each (int32).
        make: gives them, keys before values.
    """

    name: str
    offsets: Int[Tensor, " P"]
    runs: Sequence[tuple[int, int]]
    keys: Int[Tensor, " P"]
    make: Callable[[], Float[Tensor, "L 2 P G K"]]

    @cached_property
    def values(self) -> Float[Tensor, "L 2 P G K"]:
        """Keys and values of every layer; made when first asked for."""
        return self.make()
