"""Attention on a CPU through torch's fused kernel, one call for each run of rows.

Dropout and capped scores it leaves to the tiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from danlu.parts.attention import Asked
from danlu.parts.attention_calls import NO_WINDOW, Merged, like_inputs, like_queries, reached, sink_gradient, tiles
from danlu.parts.attention_tiled import attend_tiled
from danlu.sight import ANYWHERE, Sight

_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_fused_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend_fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sight: Sight,
    asked: Asked,
) -> Tensor:
    """See `danlu.parts.attention.attention`."""
    if asked.dropout is not None or asked.softcap is not None:
        return attend_tiled(q, k, v, sight, asked)
    return fused_attention(q, k, v, *reached(sight, asked), asked.scale, asked.sinks)[0]


@torch.library.custom_op("danlu::fused_attention", mutates_args=(), device_types="cpu")
def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    query_offset: Tensor,
    key_offset: Tensor,
    window: int,
    scale: float,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The attended values ``[T, H, K]`` and each row's log-sum-exp ``[H, T]``."""
    q_, k_, v_ = (x.transpose(0, 1) for x in (q, k, v))
    merged = Merged(q, table, window, sinks)
    for rows, keys, causal, seen in _fused_calls(table, query_offset, key_offset, window):
        heads = (x[None, :, where] for x, where in ((q_, rows), (k_, keys), (v_, keys)))
        values, lse = (x[0] for x in _fused(*heads, 0.0, causal, attn_mask=_bias(seen, q), scale=scale))
        if seen is not None:
            blind = ~seen.any(1)
            values, lse = values.masked_fill(blind[:, None], 0.0), lse.masked_fill(blind, -math.inf)
        merged.add(rows, values.transpose(0, 1), lse)
    return merged.result(q)


def _fused_calls(
    table: Tensor, query_offset: Tensor, key_offset: Tensor, window: int
) -> Iterator[tuple[slice, slice, bool, Tensor | None]]:
    """Whole calls where the kernel needs no mask; tiles with a mask where there is a window."""
    for call in table:
        q0, q1, k0, k1, causal = call.tolist()
        if q1 == q0 or k1 == k0:
            continue
        if window == NO_WINDOW or int(key_offset[k0]) == ANYWHERE or (causal and q1 - q0 <= window):
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
    # A row that sees nothing: its scores' exponentials, exp(-inf - 0), are 0; exp(-inf + inf) is not.
    lse = lse.masked_fill(lse == -math.inf, 0.0)
    for rows, keys, causal, seen in _fused_calls(table, query_offset, key_offset, window):
        inputs = ((grad, rows), (q, rows), (k, keys), (v, keys), (out, rows))
        heads = (x[where].transpose(0, 1)[None] for x, where in inputs)
        parts = _fused_backward(
            *heads, lse[None, :, rows].contiguous(), 0.0, causal, attn_mask=_bias(seen, q), scale=scale
        )
        for total, where, part in zip(grads, (rows, keys, keys), parts, strict=True):
            total[where] += part[0].transpose(0, 1)
    return grads[0], grads[1], grads[2]


def _remember(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: tuple[Tensor, Tensor]
) -> None:
    q, k, v, table, query_offset, key_offset, ctx.window, ctx.scale, sinks = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(q, k, v, *output, table, query_offset, key_offset, sinks)  # type: ignore[arg-type]


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, sinks = ctx.saved_tensors  # type: ignore[attr-defined]
    grads = fused_attention_backward(grad.contiguous(), *tensors, ctx.window, ctx.scale)  # type: ignore[attr-defined]
    return (*grads, *(None,) * 5, sink_gradient(sinks, grad, tensors[3], tensors[4]))


fused_attention.register_fake(like_queries)
fused_attention.register_autograd(_backward, setup_context=_remember)
fused_attention_backward.register_fake(like_inputs)
