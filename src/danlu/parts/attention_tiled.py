"""Attention on a CPU by tiles: plain matrix products with the softmax between them as one compiled function.

It is faster than the fused kernel when compilation is on (much so in bf16), and the only way that knows dropout and
capped scores.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from danlu.parts.attention import Asked, keep_scale
from danlu.parts.attention_calls import (
    Merged,
    Tile,
    keyed,
    like_inputs,
    like_queries,
    precise,
    reached,
    sink_gradient,
    tiles,
)
from danlu.parts.compiled import compiled
from danlu.sight import Sight


def attend_tiled(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sight: Sight,
    asked: Asked,
) -> Tensor:
    """See `danlu.parts.attention.attention`."""
    told = (*reached(sight, asked), asked.scale, *keyed(asked), asked.softcap)
    return tiled_attention(q, k, v, *told, asked.sinks)[0]


def _seen(like: Tensor, low: Tensor, high: Tensor) -> Tensor:
    key = torch.arange(like.shape[-1])
    return (key >= low[:, None]) & (key < high[:, None])


def _keep(keyed: tuple[Tensor, Tensor, Tensor], scores: Tensor, p: float) -> Tensor:
    """`keep_scale` in the order of the scores."""
    groups, rows, _ = scores.shape
    by_head = keep_scale(*keyed, groups * rows // len(keyed[0]), p)  # [H, n, m]
    return by_head.unflatten(0, (groups, -1)).transpose(1, 2).flatten(1, 2)


def _scored(scores: Tensor, wide: torch.dtype, scale: float, softcap: float | None) -> Tensor:
    scored = scores.to(wide) * scale
    return scored if softcap is None else (scored / softcap).tanh() * softcap


@compiled
def _softmax(
    scores: Tensor,
    low: Tensor,
    high: Tensor,
    scale: float,
    keyed: tuple[Tensor, Tensor, Tensor] | None,
    p: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Probabilities over the keys between low and high (dropped where keyed), and the log-sum-exp without dropout."""
    scored = _scored(scores, precise(scores), scale, softcap)
    wide = torch.where(_seen(scores, low, high), scored, -math.inf)
    peak = wide.amax(-1, keepdim=True)
    exponentials = (wide - torch.where(peak == -math.inf, 0.0, peak)).exp()
    total = exponentials.sum(-1, keepdim=True)
    probabilities = exponentials / torch.where(total == 0, 1.0, total)
    if keyed is not None:
        probabilities = probabilities * _keep(keyed, scores, p)
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
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Probabilities (dropped where keyed) and the gradient of the scores; sum(dP P) is sum(dO O), dropped or not."""
    scored = _scored(scores, lse.dtype, scale, softcap)
    probabilities = torch.where(_seen(scores, low, high), (scored - lse[..., None]).exp(), 0.0)
    slope = upstream.to(lse.dtype)
    kept = probabilities
    if keyed is not None:
        keep = _keep(keyed, scores, p)
        kept, slope = probabilities * keep, slope * keep
    gradient = probabilities * (slope - delta[..., None]) * scale
    if softcap is not None:
        gradient = gradient * (1 - (scored / softcap).square())
    return kept.to(scores.dtype), gradient.to(scores.dtype)


@compiled
def _product(grad: Tensor, out: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum(dO O) over each head's width."""
    return (grad.to(dtype) * out.to(dtype)).sum(-1)


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
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The attended values ``[T, H, K]`` and each row's log-sum-exp ``[H, T]``."""
    groups, merged = k.shape[1], Merged(q, table, window, sinks)
    for tile in tiles(table, query_offset, key_offset, window):
        q_, (k_, v_) = _queries(q[tile.rows], groups), (_keys(x[tile.keys]) for x in (k, v))
        low, high = _each_head(tile, q.shape[1] // groups)
        keyed = _keyed(tile, query_keys, key_keys, place)
        probabilities, lse = _softmax(torch.bmm(q_, k_.transpose(1, 2)), low, high, scale, keyed, p, softcap)
        values = torch.bmm(probabilities, v_)
        merged.add(tile.rows, _rows(values, q.shape[1]), _rows(lse, q.shape[1]).t())
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
    softcap: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of queries, keys and values."""
    heads, groups = q.shape[1], k.shape[1]
    dq, dk, dv = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    delta = _product(grad, out, lse.dtype)
    for tile in tiles(table, query_offset, key_offset, window):
        rows, keys = tile.rows, tile.keys
        q_, grad_ = (_queries(x[rows], groups) for x in (q, grad))
        k_, v_ = (_keys(x[keys]) for x in (k, v))
        lse_, delta_ = (_queries(x[rows], groups) for x in (lse.t(), delta))
        low, high = _each_head(tile, heads // groups)
        scores, upstream = torch.bmm(q_, k_.transpose(1, 2)), torch.bmm(grad_, v_.transpose(1, 2))
        keyed = _keyed(tile, query_keys, key_keys, place)
        kept, slope = _softmax_backward(scores, upstream, lse_, delta_, low, high, scale, keyed, p, softcap)
        dv[keys] += torch.bmm(kept.transpose(1, 2), grad_).transpose(0, 1)
        dk[keys] += torch.bmm(slope.transpose(1, 2), q_).transpose(0, 1)
        dq[rows] += _rows(torch.bmm(slope, k_), heads)
    return dq, dk, dv


def _queries(x: Tensor, groups: int) -> Tensor:
    """``[n, H, ...]`` as ``[G, n * H/G, ...]``: the heads that share a key head are more rows of one product."""
    return x.unflatten(1, (groups, -1)).transpose(0, 1).flatten(1, 2)


def _rows(x: Tensor, heads: int) -> Tensor:
    """``[G, n * H/G, ...]`` as ``[n, H, ...]``, the inverse of `_queries`."""
    return x.unflatten(1, (-1, heads // x.shape[0])).transpose(0, 1).flatten(1, 2)


def _keys(x: Tensor) -> Tensor:
    """``[m, G, K]`` as ``[G, m, K]``."""
    return x.transpose(0, 1).contiguous()


def _each_head(tile: Tile, sharing: int) -> tuple[Tensor, Tensor]:
    """The bounds of every row of `_queries`."""
    return tile.low.repeat_interleave(sharing), tile.high.repeat_interleave(sharing)


def _remember(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: tuple[Tensor, Tensor]
) -> None:
    q, k, v, table, query_offset, key_offset, ctx.window, ctx.scale, *rest = inputs  # type: ignore[attr-defined]
    *keyed, ctx.p, ctx.softcap, sinks = rest  # type: ignore[attr-defined]
    ctx.save_for_backward(q, k, v, *output, table, query_offset, key_offset, *keyed, sinks)  # type: ignore[arg-type]


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, query_keys, key_keys, place, sinks = ctx.saved_tensors  # type: ignore[attr-defined]
    keyed = (query_keys, key_keys, place, ctx.p, ctx.softcap)  # type: ignore[attr-defined]
    grads = tiled_attention_backward(grad.contiguous(), *tensors, ctx.window, ctx.scale, *keyed)  # type: ignore[attr-defined]
    return (*grads, *(None,) * 10, sink_gradient(sinks, grad, tensors[3], tensors[4]))


tiled_attention.register_fake(like_queries)
tiled_attention.register_autograd(_backward, setup_context=_remember)
tiled_attention_backward.register_fake(like_inputs)
