"""Attention on a CPU: the fused kernel, one call for each run of rows, merged by log-sum-exp.

Forward keeps, for every query row, the log-sum-exp over *all* it sees. Backward of one call then needs no other call: with the
merged output and log-sum-exp in place of its own, the fused kernel's backward gives this call's share of the gradients.

It is one opaque operator, so that a compiled block holds one graph whatever the lengths in the pack are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from danlu.packed import ANYWHERE, Sight
from danlu.parts.attention import AttentionDropout, keep_scale

_NO_WINDOW = -1
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

Call = tuple[slice, slice, bool, Tensor | None]
"""Query rows, key rows, whether causal within the square, and what may be seen ``[q, k]`` where the call is not dense."""


def attend_by_call(
    q: Tensor, k: Tensor, v: Tensor, sight: Sight, *, window: int | None, scale: float, dropout: AttentionDropout | None
) -> Tensor:
    """See `danlu.parts.attention.attention`."""
    table, reach = (sight.calls, sight.query_offset, sight.key_offset), _NO_WINDOW if window is None else window
    if dropout is None:
        out, _ = packed_attention(q, k, v, *table, reach, scale)
        return out
    keys = (dropout.query_keys, dropout.key_keys, dropout.place)
    out, _ = packed_attention_dropout(q, k, v, *table, reach, scale, *keys, dropout.p)
    return out


def _calls(table: Tensor, query_offset: Tensor, key_offset: Tensor, window: int) -> Iterator[Call]:
    for q0, q1, k0, k1, causal in table.tolist():
        if q1 == q0 or k1 == k0:
            continue
        if window == _NO_WINDOW or int(key_offset[k0]) == ANYWHERE or (causal and q1 - q0 <= window):
            yield slice(q0, q1), slice(k0, k1), bool(causal), None
        else:
            yield from _windowed(q0, q1, k0, k1, bool(causal), query_offset, key_offset, window)


def _windowed(
    q0: int, q1: int, k0: int, k1: int, causal: bool, query_offset: Tensor, key_offset: Tensor, window: int
) -> Iterator[Call]:
    """Blocks of queries, each against just the keys that some of them reach: cost grows with length times window."""
    block = max(64, window)
    for start in range(q0, q1, block):
        rows = slice(start, min(start + block, q1))
        query = query_offset[rows]
        first = max(k0, k0 + int(query.min()) - window + 1 - int(key_offset[k0]))
        last = min(k1, k0 + (rows.stop - q0 if causal else int(query.max()) + window - int(key_offset[k0])))
        if first < last:
            key = key_offset[first:last]
            distance = query[:, None] - key
            seen = (distance < window) & (distance > (-1 if causal else -window))
            yield rows, slice(first, last), False, seen


def _heads_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1).unsqueeze(0)


def _bias(seen: Tensor | None, like: Tensor) -> Tensor | None:
    return None if seen is None else torch.zeros_like(seen, dtype=like.dtype).masked_fill_(~seen, float("-inf"))


def _merge(out: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Fold one call's result ``[q, H, K]``, ``[q, H]`` into what the rows have so far, in place."""
    total = torch.logaddexp(lse, part_lse)
    mine, theirs = ((t - total).exp().nan_to_num_(0.0).unsqueeze(-1) for t in (lse, part_lse))
    out.copy_(out * mine + part * theirs)
    lse.copy_(total)


@torch.library.custom_op("danlu::packed_attention", mutates_args=(), device_types="cpu")
def packed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    query_offset: Tensor,
    key_offset: Tensor,
    window: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The attended values ``[Tq, H, K]`` and each row's log-sum-exp ``[Tq, H]``."""
    precise = torch.float64 if q.dtype == torch.float64 else torch.float32
    covered = torch.zeros(len(q), dtype=torch.int32)
    for q0, q1, k0, k1, _ in table.tolist():
        covered[q0:q1] += k1 > k0
    merged = bool((covered > 1).any()) or window != _NO_WINDOW
    out = torch.zeros_like(q, dtype=precise if merged else q.dtype, memory_format=torch.contiguous_format)
    lse = torch.full(q.shape[:2], -math.inf, dtype=precise)
    written = torch.zeros(len(q), dtype=torch.bool)
    for rows, keys, causal, seen in _calls(table, query_offset, key_offset, window):
        part, part_lse = _flash(
            *(_heads_first(x) for x in (q[rows], k[keys], v[keys])), 0.0, causal, attn_mask=_bias(seen, q), scale=scale
        )
        part, part_lse = part[0].transpose(0, 1), part_lse[0].transpose(0, 1)
        if seen is not None:
            blind = ~seen.any(1)
            part, part_lse = part.masked_fill(blind[:, None, None], 0.0), part_lse.masked_fill(blind[:, None], -math.inf)
        if bool(written[rows].any()):
            _merge(out[rows], lse[rows], part, part_lse)
        else:
            out[rows], lse[rows] = part, part_lse
            written[rows] = True
    return out.to(q.dtype), lse


@packed_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    precise = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=precise)


@torch.library.custom_op("danlu::packed_attention_backward", mutates_args=(), device_types="cpu")
def packed_attention_backward(
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
    grads = tuple(torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    for rows, keys, causal, seen in _calls(table, query_offset, key_offset, window):
        parts = _flash_backward(
            *(_heads_first(x) for x in (grad[rows], q[rows], k[keys], v[keys], out[rows])),
            lse[rows].transpose(0, 1).unsqueeze(0).contiguous(),
            0.0,
            causal,
            attn_mask=_bias(seen, q),
            scale=scale,
        )
        for total, where, part in zip(grads, (rows, keys, keys), parts, strict=True):
            total[where] += part[0].transpose(0, 1)
    return grads


@packed_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, table, query_offset, key_offset, ctx.window, ctx.scale, *rest = inputs  # type: ignore[attr-defined]
    tensors = (q, k, v, *output, table, query_offset, key_offset, *rest[:3])
    ctx.save_for_backward(*tensors)  # type: ignore[arg-type]
    ctx.p = rest[3] if rest else 0.0  # type: ignore[attr-defined]


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    saved = (*ctx.saved_tensors, ctx.window, ctx.scale)  # type: ignore[attr-defined]
    return (*packed_attention_backward(grad.contiguous(), *saved), None, None, None, None, None)


packed_attention.register_autograd(_backward, setup_context=_keep)


def _probabilities(
    q: Tensor, k: Tensor, lse: Tensor, causal: bool, seen: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """This call's share of the softmax ``[H, q, k]``, and its keys with a head for every query head."""
    keys = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).transpose(0, 1).to(lse.dtype)
    scores = q.transpose(0, 1).to(lse.dtype) @ keys.transpose(1, 2) * scale
    probabilities = (scores - lse.T.unsqueeze(-1)).exp()
    if causal:
        return probabilities.tril(), keys
    return (probabilities if seen is None else probabilities * seen), keys


@torch.library.custom_op("danlu::packed_attention_dropout", mutates_args=(), device_types="cpu")
def packed_attention_dropout(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    query_offset: Tensor,
    key_offset: Tensor,
    window: int,
    scale: float,
    query_keys: Tensor,
    key_keys: Tensor,
    place: Tensor,
    p: float,
) -> tuple[Tensor, Tensor]:
    """As `packed_attention`, with the probabilities dropped; its log-sum-exp is the one without dropout."""
    _, lse = packed_attention(q, k, v, table, query_offset, key_offset, window, scale)
    out = torch.zeros(q.shape, dtype=lse.dtype)
    for rows, keys, causal, seen in _calls(table, query_offset, key_offset, window):
        probabilities, _ = _probabilities(q[rows], k[keys], lse[rows], causal, seen, scale)
        kept = probabilities * keep_scale(query_keys[rows], key_keys[keys], place, q.shape[1], p)
        values = v[keys].repeat_interleave(q.shape[1] // v.shape[1], dim=1).transpose(0, 1).to(lse.dtype)
        out[rows] += (kept @ values).transpose(0, 1)
    return out.to(q.dtype), lse


@packed_attention_dropout.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    precise = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=precise)


@torch.library.custom_op("danlu::packed_attention_dropout_backward", mutates_args=(), device_types="cpu")
def packed_attention_dropout_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    table: Tensor,
    query_offset: Tensor,
    key_offset: Tensor,
    query_keys: Tensor,
    key_keys: Tensor,
    place: Tensor,
    window: int,
    scale: float,
    p: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of queries, keys and values; the rows' sum of dP P is that of dO O, dropped or not."""
    dq, dk, dv = (torch.zeros(x.shape, dtype=lse.dtype) for x in (q, k, v))
    delta = (grad.to(lse.dtype) * out).sum(-1)
    heads, group = q.shape[1], q.shape[1] // k.shape[1]
    for rows, keys, causal, seen in _calls(table, query_offset, key_offset, window):
        probabilities, all_keys = _probabilities(q[rows], k[keys], lse[rows], causal, seen, scale)
        kept = keep_scale(query_keys[rows], key_keys[keys], place, heads, p)
        upstream = grad[rows].transpose(0, 1).to(lse.dtype)
        values = v[keys].repeat_interleave(group, dim=1).transpose(0, 1).to(lse.dtype)
        dscores = probabilities * (upstream @ values.transpose(1, 2) * kept - delta[rows].T.unsqueeze(-1)) * scale
        dq[rows] += (dscores @ all_keys).transpose(0, 1)
        by_head = ((probabilities * kept).transpose(1, 2) @ upstream, dscores.transpose(1, 2) @ q[rows].transpose(0, 1).to(lse.dtype))
        for total, part in zip((dv, dk), by_head, strict=True):
            total[keys] += part.unflatten(0, (-1, group)).sum(1).transpose(0, 1)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


@packed_attention_dropout_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _backward_dropout(ctx: torch.autograd.function.FunctionCtx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    saved = (*ctx.saved_tensors, ctx.window, ctx.scale, ctx.p)  # type: ignore[attr-defined]
    return (*packed_attention_dropout_backward(grad.contiguous(), *saved), *(None,) * 9)


packed_attention_dropout.register_autograd(_backward_dropout, setup_context=_keep)
