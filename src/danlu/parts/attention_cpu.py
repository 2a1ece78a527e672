"""Attention on a CPU, one run of rows at a time, merged by log-sum-exp.

Forward keeps, for every query row, the log-sum-exp over *all* it sees. Backward of one call then needs no other call:
with the merged output and log-sum-exp in place of its own, a call's share of the gradients comes out exactly.

Two ways: torch's fused kernel; or tiles of plain matrix products with the softmax between them as one compiled
function, which is faster when compilation is on (much so in bf16) and is the only way that knows dropout. Both are
opaque operators, so that a compiled block is one graph whatever the lengths in the pack are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from danlu.packed import ANYWHERE, Sight
from danlu.parts.attention import AttentionDropout, keep_scale
from danlu.parts.compiled import compiled, is_compiling

TILE_ROWS = 256
"""How many queries a tile has; keys are taken whole, as far as these queries see."""
_NO_WINDOW = -1
_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_fused_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend_on_cpu(
    q: Tensor, k: Tensor, v: Tensor, sight: Sight, *, window: int | None, scale: float, dropout: AttentionDropout | None
) -> Tensor:
    """See `danlu.parts.attention.attention`."""
    if dropout is None and not is_compiling():
        return attend_fused(q, k, v, sight, window=window, scale=scale, dropout=None)
    return attend_tiled(q, k, v, sight, window=window, scale=scale, dropout=dropout)


def attend_fused(
    q: Tensor, k: Tensor, v: Tensor, sight: Sight, *, window: int | None, scale: float, dropout: AttentionDropout | None
) -> Tensor:
    """Through the fused kernel; without dropout."""
    if dropout is not None:
        return attend_tiled(q, k, v, sight, window=window, scale=scale, dropout=dropout)
    reach = _NO_WINDOW if window is None else window
    return fused_attention(q, k, v, sight.calls, sight.query_offset, sight.key_offset, reach, scale)[0]


def attend_tiled(
    q: Tensor, k: Tensor, v: Tensor, sight: Sight, *, window: int | None, scale: float, dropout: AttentionDropout | None
) -> Tensor:
    """Tile by tile."""
    table, reach = (sight.calls, sight.query_offset, sight.key_offset), _NO_WINDOW if window is None else window
    if dropout is None:
        return tiled_attention(q, k, v, *table, reach, scale, None, None, None, 0.0)[0]
    keyed = (dropout.query_keys, dropout.key_keys, dropout.place, dropout.p)
    return tiled_attention(q, k, v, *table, reach, scale, *keyed)[0]


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
                low = (high - window).clamp_(min=0) if window != _NO_WINDOW else torch.zeros_like(high)
            elif window == _NO_WINDOW or origin == ANYWHERE:
                low = torch.zeros(rows.stop - rows.start, dtype=torch.int64)
                high = low + (k1 - k0)
            else:
                here = query_offset[rows] - origin
                low, high = (here - window + 1).clamp_(0, k1 - k0), (here + window).clamp_(0, k1 - k0)
            first, last = int(low.min()), int(high.max())
            if first < last:
                yield Tile(rows, slice(k0 + first, k0 + last), low - first, high - first)


def _precise(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _seen(like: Tensor, low: Tensor, high: Tensor) -> Tensor:
    key = torch.arange(like.shape[-1])
    return (key >= low[:, None]) & (key < high[:, None])


class _Merged:
    """What the rows have attended to so far: ``[H, T, K]`` and its log-sum-exp ``[H, T]``."""

    def __init__(self, q: Tensor, table: Tensor, window: int) -> None:
        calls_of_row = torch.zeros(q.shape[1], dtype=torch.int64)
        for q0, q1, k0, k1, _ in table.tolist():
            calls_of_row[q0:q1] += k1 > k0
        several = bool((calls_of_row > 1).any())
        self.complete = bool((calls_of_row > 0).all()) and not several and window == _NO_WINDOW
        self.values = torch.empty_like(q) if self.complete else torch.zeros_like(q, dtype=_precise(q))
        self.lse = torch.full(q.shape[:2], -math.inf, dtype=_precise(q))

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
        return self.values.transpose(0, 1).to(q.dtype).contiguous(), self.lse


def _heads_first(x: Tensor, num_heads: int) -> Tensor:
    """``[T, G, K]`` as ``[H, T, K]``, each key head repeated for its queries' heads."""
    return x.repeat_interleave(num_heads // x.shape[1], dim=1).transpose(0, 1).contiguous()


def _heads_last(x: Tensor, num_groups: int, dtype: torch.dtype) -> Tensor:
    """``[H, T, K]`` as ``[T, G, K]``, the heads that share a key head summed."""
    heads = x if x.shape[0] == num_groups else x.unflatten(0, (num_groups, -1)).sum(1)
    return heads.transpose(0, 1).to(dtype).contiguous()


@torch.library.custom_op("danlu::fused_attention", mutates_args=(), device_types="cpu")
def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, query_offset: Tensor, key_offset: Tensor, window: int, scale: float
) -> tuple[Tensor, Tensor]:
    """The attended values ``[T, H, K]`` and each row's log-sum-exp ``[H, T]``."""
    q_, k_, v_ = (x.transpose(0, 1) for x in (q, k, v))
    merged = _Merged(q_, table, window)
    for rows, keys, causal, seen in _fused_calls(table, query_offset, key_offset, window):
        heads = (x[None, :, where] for x, where in ((q_, rows), (k_, keys), (v_, keys)))
        values, lse = (x[0] for x in _fused(*heads, 0.0, causal, attn_mask=_bias(seen, q), scale=scale))
        if seen is not None:
            blind = ~seen.any(1)
            values, lse = values.masked_fill(blind[:, None], 0.0), lse.masked_fill(blind, -math.inf)
        merged.add(rows, values, lse)
    return merged.result(q)


def _fused_calls(
    table: Tensor, query_offset: Tensor, key_offset: Tensor, window: int
) -> Iterator[tuple[slice, slice, bool, Tensor | None]]:
    """Whole calls where the kernel needs no mask; tiles with a mask where there is a window."""
    for call in table:
        q0, q1, k0, k1, causal = call.tolist()
        if q1 == q0 or k1 == k0:
            continue
        if window == _NO_WINDOW or int(key_offset[k0]) == ANYWHERE or (causal and q1 - q0 <= window):
            yield slice(q0, q1), slice(k0, k1), bool(causal), None
            continue
        for tile in tiles(call[None], query_offset, key_offset, window):
            keys = torch.arange(tile.keys.stop - tile.keys.start)
            yield tile.rows, tile.keys, False, (keys >= tile.low[:, None]) & (keys < tile.high[:, None])


def _bias(seen: Tensor | None, like: Tensor) -> Tensor | None:
    return None if seen is None else torch.zeros_like(seen, dtype=like.dtype).masked_fill_(~seen, float("-inf"))


@torch.library.custom_op("danlu::fused_attention_backward", mutates_args=(), device_types="cpu")
def fused_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    table: Tensor,
    query_offset: Tensor,
    key_offset: Tensor,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of queries, keys and values."""
    grads = [torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
    lse = lse.masked_fill(
        lse == -math.inf, 0.0
    )  # of a row that sees nothing: exp(-inf - 0) is 0, exp(-inf + inf) is not
    for rows, keys, causal, seen in _fused_calls(table, query_offset, key_offset, window):
        inputs = ((grad, rows), (q, rows), (k, keys), (v, keys), (out, rows))
        heads = (x[where].transpose(0, 1)[None] for x, where in inputs)
        parts = _fused_backward(
            *heads, lse[None, :, rows].contiguous(), 0.0, causal, attn_mask=_bias(seen, q), scale=scale
        )
        for total, where, part in zip(grads, (rows, keys, keys), parts, strict=True):
            total[where] += part[0].transpose(0, 1)
    return grads[0], grads[1], grads[2]


@compiled
def _softmax(
    scores: Tensor, low: Tensor, high: Tensor, scale: float, keyed: tuple[Tensor, Tensor, Tensor] | None, p: float
) -> tuple[Tensor, Tensor]:
    """Probabilities over the keys between low and high (dropped where keyed), and the log-sum-exp without dropout."""
    wide = torch.where(_seen(scores, low, high), scores.to(_precise(scores)) * scale, -math.inf)
    peak = wide.amax(-1, keepdim=True)
    exponentials = (wide - torch.where(peak == -math.inf, 0.0, peak)).exp()
    total = exponentials.sum(-1, keepdim=True)
    probabilities = exponentials / torch.where(total == 0, 1.0, total)
    if keyed is not None:
        probabilities = probabilities * keep_scale(*keyed, scores.shape[0], p)
    return probabilities.to(scores.dtype), (peak + total.log()).squeeze(-1)


@compiled
def _softmax_backward(
    scores: Tensor,
    upstream: Tensor,
    lse: Tensor,
    delta: Tensor,
    low: Tensor,
    high: Tensor,
    scale: float,
    keyed: tuple[Tensor, Tensor, Tensor] | None,
    p: float,
) -> tuple[Tensor, Tensor]:
    """Probabilities (dropped where keyed) and the gradient of the scores; sum(dP P) is sum(dO O), dropped or not."""
    seen = _seen(scores, low, high)
    probabilities = torch.where(seen, (scores.to(lse.dtype) * scale - lse[..., None]).exp(), 0.0)
    slope = upstream.to(lse.dtype)
    kept = probabilities
    if keyed is not None:
        keep = keep_scale(*keyed, scores.shape[0], p)
        kept, slope = probabilities * keep, slope * keep
    gradient = probabilities * (slope - delta[..., None]) * scale
    return kept.to(scores.dtype), gradient.to(scores.dtype)


def _keyed(
    tile: Tile, query_keys: Tensor | None, key_keys: Tensor | None, place: Tensor | None
) -> tuple[Tensor, Tensor, Tensor] | None:
    if query_keys is None or key_keys is None or place is None:
        return None
    return query_keys[tile.rows], key_keys[tile.keys], place


@torch.library.custom_op("danlu::tiled_attention", mutates_args=(), device_types="cpu")
def tiled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    query_offset: Tensor,
    key_offset: Tensor,
    window: int,
    scale: float,
    query_keys: Tensor | None,
    key_keys: Tensor | None,
    place: Tensor | None,
    p: float,
) -> tuple[Tensor, Tensor]:
    """The attended values ``[T, H, K]`` and each row's log-sum-exp ``[H, T]``."""
    q_, k_, v_ = (_heads_first(x, q.shape[1]) for x in (q, k, v))
    merged = _Merged(q_, table, window)
    for tile in tiles(table, query_offset, key_offset, window):
        scores = torch.bmm(q_[:, tile.rows], k_[:, tile.keys].transpose(1, 2))
        keyed = _keyed(tile, query_keys, key_keys, place)
        probabilities, lse = _softmax(scores, tile.low, tile.high, scale, keyed, p)
        merged.add(tile.rows, torch.bmm(probabilities, v_[:, tile.keys]), lse)
    return merged.result(q)


@torch.library.custom_op("danlu::tiled_attention_backward", mutates_args=(), device_types="cpu")
def tiled_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    table: Tensor,
    query_offset: Tensor,
    key_offset: Tensor,
    window: int,
    scale: float,
    query_keys: Tensor | None,
    key_keys: Tensor | None,
    place: Tensor | None,
    p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of queries, keys and values."""
    grad_, q_, k_, v_ = (_heads_first(x, q.shape[1]) for x in (grad, q, k, v))
    dq, dk, dv = (torch.zeros_like(x) for x in (q_, k_, v_))
    delta = (grad.to(lse.dtype) * out).sum(-1).T
    for tile in tiles(table, query_offset, key_offset, window):
        rows, keys = tile.rows, tile.keys
        scores = torch.bmm(q_[:, rows], k_[:, keys].transpose(1, 2))
        upstream = torch.bmm(grad_[:, rows], v_[:, keys].transpose(1, 2))
        keyed = _keyed(tile, query_keys, key_keys, place)
        kept, slope = _softmax_backward(
            scores, upstream, lse[:, rows], delta[:, rows], tile.low, tile.high, scale, keyed, p
        )
        dv[:, keys] += torch.bmm(kept.transpose(1, 2), grad_[:, rows])
        dk[:, keys] += torch.bmm(slope.transpose(1, 2), q_[:, rows])
        dq[:, rows] += torch.bmm(slope, k_[:, keys])
    groups = k.shape[1]
    return _heads_last(dq, q.shape[1], q.dtype), _heads_last(dk, groups, k.dtype), _heads_last(dv, groups, v.dtype)


def _fake(q: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=_precise(q))


def _fake_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, table, query_offset, key_offset, ctx.window, ctx.scale, *keyed = inputs  # type: ignore[attr-defined]
    ctx.p = keyed.pop() if keyed else None  # type: ignore[attr-defined]
    ctx.save_for_backward(q, k, v, *output, table, query_offset, key_offset, *keyed)  # type: ignore[arg-type]


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    tensors, keyed = ctx.saved_tensors[:8], ctx.saved_tensors[8:]  # type: ignore[attr-defined]
    settings = (grad.contiguous(), *tensors, ctx.window, ctx.scale)  # type: ignore[attr-defined]
    if ctx.p is None:  # type: ignore[attr-defined]
        return (*fused_attention_backward(*settings), *(None,) * 5)
    return (*tiled_attention_backward(*settings, *keyed, ctx.p), *(None,) * 9)  # type: ignore[attr-defined]


for _operator in (fused_attention, tiled_attention):
    _operator.register_fake(_fake)
    _operator.register_autograd(_backward, setup_context=_keep)
for _operator in (fused_attention_backward, tiled_attention_backward):
    _operator.register_fake(_fake_backward)
