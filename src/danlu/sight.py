"""Who sees whom: the one description of every attention there is.

Segments lie in depth-first order, a parent before its children, so what descends from a segment is the run of rows
right behind it. Hence the rule of `danlu.packed` needs two integers a key and no mask: **key row j is seen by the query
rows from `first[j]` up to, not including, `end[j]`**, where `first[j]` is j itself in a causal segment and the
segment's first row in a full one, and `end[j]` is where the segment's subtree ends. Learned keys, cached keys and the
keys of another forest are intervals of the same kind.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

ANYWHERE = -1
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
        key_offset: the same of each key; `ANYWHERE` exempts it from windows.
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
        start, stop = (0, len(self.query_offset)) if rows is None else rows
        shifted = self.calls + torch.tensor([0, 0, num_keys, num_keys, 0])
        call = torch.tensor([[start, stop, 0, num_keys, 0]])
        extra = self.first.new_ones(num_keys)
        return replace(
            self,
            calls=torch.cat([call, shifted]),
            first=torch.cat([extra * start, self.first]),
            end=torch.cat([extra * stop, self.end]),
            key_offset=torch.cat([extra * ANYWHERE, self.key_offset]),
        )

    def to(self, device: torch.device | str) -> Sight:
        """The same on another device; the calls stay on the host."""
        moved = (t.to(device) for t in (self.first, self.end, self.query_offset, self.key_offset))
        return Sight(self.calls, *moved)
