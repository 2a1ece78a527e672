"""Attention on a CPU by tiles: plain matrix products with the softmax between them as one compiled function.

It is faster than the fused kernel when compilation is on (much so in bf16), and the only way that knows dropout.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from danlu.parts.attention import AttentionDropout, keep_scale
from danlu.parts.attention_calls import (
    NO_WINDOW,
    Merged,
    Tile,
    heads_first,
    heads_last,
    like_inputs,
    like_queries,
    precise,
    tiles,
)
from danlu.parts.compiled import compiled
from danlu.sight import Sight


def attend_tiled(
    q: Tensor, k: Tensor, v: Tensor, sight: Sight, *, window: int | None, scale: float, dropout: AttentionDropout | None
) -> Tensor:
    """See `danlu.parts.attention.attention`."""
    table, reach = (sight.calls, sight.query_offset, sight.key_offset), NO_WINDOW if window is None else window
    if dropout is None:
        return tiled_attention(q, k, v, *table, reach, scale, None, None, None, 0.0)[0]
    keyed = (dropout.query_keys, dropout.key_keys, dropout.place, dropout.p)
    return tiled_attention(q, k, v, *table, reach, scale, *keyed)[0]


def _seen(like: Tensor, low: Tensor, high: Tensor) -> Tensor:
    key = torch.arange(like.shape[-1])
    return (key >= low[:, None]) & (key < high[:, None])


@compiled
def _softmax(
    scores: Tensor, low: Tensor, high: Tensor, scale: float, keyed: tuple[Tensor, Tensor, Tensor] | None, p: float
) -> tuple[Tensor, Tensor]:
    """Probabilities over the keys between low and high (dropped where keyed), and the log-sum-exp without dropout."""
    wide = torch.where(_seen(scores, low, high), scores.to(precise(scores)) * scale, -math.inf)
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
    q_, k_, v_ = (heads_first(x, q.shape[1]) for x in (q, k, v))
    merged = Merged(q_, table, window)
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
    grad_, q_, k_, v_ = (heads_first(x, q.shape[1]) for x in (grad, q, k, v))
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
    return heads_last(dq, q.shape[1], q.dtype), heads_last(dk, groups, k.dtype), heads_last(dv, groups, v.dtype)


def _remember(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: tuple[Tensor, Tensor]
) -> None:
    q, k, v, table, query_offset, key_offset, ctx.window, ctx.scale, *keyed, ctx.p = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(q, k, v, *output, table, query_offset, key_offset, *keyed)  # type: ignore[arg-type]


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    tensors, keyed = ctx.saved_tensors[:8], ctx.saved_tensors[8:]  # type: ignore[attr-defined]
    settings = (*tensors, ctx.window, ctx.scale, *keyed, ctx.p)  # type: ignore[attr-defined]
    return (*tiled_attention_backward(grad.contiguous(), *settings), *(None,) * 9)


tiled_attention.register_fake(like_queries)
tiled_attention.register_autograd(_backward, setup_context=_remember)
tiled_attention_backward.register_fake(like_inputs)
