"""What attention by calls shares: cutting calls into tiles, merging their results, the shapes of the operators.

Forward keeps, for every query row, the log-sum-exp over *all* it sees. Backward of one call then needs no other call:
with the merged output and log-sum-exp in place of its own, a call's share of the gradients comes out exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from danlu.sight import ANYWHERE

NO_WINDOW = -1
"""The window of a layer that has none, for operators."""
TILE_ROWS = 256
"""How many queries a tile has; keys are taken whole, as far as these queries see."""


class Tile(NamedTuple):
    """Some queries and the keys they see: query i those from `low[i]` up to `high[i]`, counted from the first."""

    rows: slice
    keys: slice
    low: Tensor
    high: Tensor


def tiles(
    table: Tensor, query_offset: Tensor, key_offset: Tensor, window: int, size: int = TILE_ROWS
) -> Iterator[Tile]:
    """Cut calls into tiles that hold just the keys some of their queries see."""
    for q0, q1, k0, k1, causal in table.tolist():
        if q1 == q0 or k1 == k0:
            continue
        origin = int(key_offset[k0])
        for start in range(q0, q1, size):
            rows = slice(start, min(start + size, q1))
            if causal:
                high = torch.arange(rows.start - q0, rows.stop - q0) + 1
                low = (high - window).clamp_(min=0) if window != NO_WINDOW else torch.zeros_like(high)
            elif window == NO_WINDOW or origin == ANYWHERE:
                low = torch.zeros(rows.stop - rows.start, dtype=torch.int64)
                high = low + (k1 - k0)
            else:
                here = query_offset[rows] - origin
                low, high = (here - window + 1).clamp_(0, k1 - k0), (here + window).clamp_(0, k1 - k0)
            first, last = int(low.min()), int(high.max())
            if first < last:
                yield Tile(rows, slice(k0 + first, k0 + last), low - first, high - first)


def precise(x: Tensor) -> torch.dtype:
    """The precision of sums over x."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class Merged:
    """What the rows have attended to so far: ``[H, T, K]`` and its log-sum-exp ``[H, T]``."""

    def __init__(self, q: Tensor, table: Tensor, window: int) -> None:
        calls_of_row = torch.zeros(q.shape[1], dtype=torch.int64)
        for q0, q1, k0, k1, _ in table.tolist():
            calls_of_row[q0:q1] += k1 > k0
        several = bool((calls_of_row > 1).any())
        self.complete = bool((calls_of_row > 0).all()) and not several and window == NO_WINDOW
        self.values = torch.empty_like(q) if self.complete else torch.zeros_like(q, dtype=precise(q))
        self.lse = torch.full(q.shape[:2], -math.inf, dtype=precise(q))

    def add(self, rows: slice, values: Tensor, lse: Tensor) -> None:
        """Fold in one call's result."""
        if self.complete:
            self.values[:, rows], self.lse[:, rows] = values, lse
            return
        before = self.lse[:, rows]
        total = torch.logaddexp(before, lse)
        mine, theirs = ((x - total).exp().nan_to_num_(0.0).unsqueeze(-1) for x in (before, lse))
        self.values[:, rows] = self.values[:, rows] * mine + values * theirs
        self.lse[:, rows] = total

    def result(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """The values as ``[T, H, K]`` in the precision of q, and the log-sum-exp ``[H, T]``."""
        return self.values.transpose(0, 1).to(q.dtype).contiguous(), self.lse


def heads_first(x: Tensor, num_heads: int) -> Tensor:
    """``[T, G, K]`` as ``[H, T, K]``, each key head repeated for its queries' heads."""
    return x.repeat_interleave(num_heads // x.shape[1], dim=1).transpose(0, 1).contiguous()


def heads_last(x: Tensor, num_groups: int, dtype: torch.dtype) -> Tensor:
    """``[H, T, K]`` as ``[T, G, K]``, the heads that share a key head summed."""
    heads = x if x.shape[0] == num_groups else x.unflatten(0, (num_groups, -1)).sum(1)
    return heads.transpose(0, 1).to(dtype).contiguous()


def like_queries(q: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    """The shapes an attention operator gives."""
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=precise(q))


def like_inputs(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    """The shapes its backward operator gives."""
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
