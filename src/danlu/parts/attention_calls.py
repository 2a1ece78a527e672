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

from danlu.parts.attention import Asked
from danlu.sight import ANYWHERE, Sight

NO_WINDOW = -1
"""The window of a layer that has none, for operators."""
TILE_ROWS = 256
"""How many queries a tile has; keys are taken whole, as far as these queries see."""


def reached(sight: Sight, asked: Asked) -> tuple[Tensor, Tensor, Tensor, int]:
    """Who sees whom, as operators take it: calls, offsets of queries and keys, and the window."""
    return sight.calls, sight.query_offset, sight.key_offset, NO_WINDOW if asked.window is None else asked.window


def keyed(asked: Asked) -> tuple[Tensor | None, Tensor | None, Tensor | None, float]:
    """Dropout, as operators take it: keys of queries and keys, the place, and the fraction."""
    if asked.dropout is None:
        return None, None, None, 0.0
    return asked.dropout.query_keys, asked.dropout.key_keys, asked.dropout.place, asked.dropout.p


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
    """What the rows have attended to so far: ``[T, H, K]`` and its log-sum-exp ``[H, T]``.

    A sink is a key of value zero that every row sees, so it is where the merging begins.
    """

    def __init__(self, q: Tensor, table: Tensor, window: int, sinks: Tensor | None) -> None:
        calls_of_row = torch.zeros(len(q), dtype=torch.int64)
        for q0, q1, k0, k1, _ in table.tolist():
            calls_of_row[q0:q1] += k1 > k0
        once = bool((calls_of_row == 1).all())
        self.complete = once and window == NO_WINDOW and sinks is None
        self.values = q.new_empty(q.shape) if self.complete else q.new_zeros(q.shape, dtype=precise(q))
        self.lse = q.new_full((q.shape[1], len(q)), -math.inf, dtype=precise(q))
        if sinks is not None:
            self.lse.copy_(sinks[:, None])

    def add(self, rows: slice, values: Tensor, lse: Tensor) -> None:
        """Fold in one call's result, ``[n, H, K]`` and ``[H, n]``."""
        if self.complete:
            self.values[rows], self.lse[:, rows] = values, lse
            return
        before = self.lse[:, rows]
        total = torch.logaddexp(before, lse)
        mine, theirs = ((x - total).exp().nan_to_num_(0.0).t().unsqueeze(-1) for x in (before, lse))
        self.values[rows] = self.values[rows] * mine + values * theirs
        self.lse[:, rows] = total

    def result(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """The values in the precision of q, and the log-sum-exp."""
        return self.values.to(q.dtype), self.lse


def sink_gradient(sinks: Tensor | None, grad: Tensor, out: Tensor, lse: Tensor) -> Tensor | None:
    """The gradient of each head's sink: its value is zero, so that of its score is -p sum(dO O)."""
    if sinks is None:
        return None
    share = (sinks[:, None] - lse).exp()
    return -(share * (grad.to(lse.dtype) * out).sum(-1).T).sum(1).to(sinks.dtype)


def like_queries(q: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    """The shapes an attention operator gives."""
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=precise(q))


def like_inputs(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    """The shapes its backward operator gives."""
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
