"""The head and the cross-entropy as one operation, a chunk of rows at a time.

Logits of a chunk are made, turned into their own gradient in place, multiplied back, and forgotten: ``[T, V]`` never
exists, and rows without a target never come here. The gradient is taken in the forward pass, where the logits are at
hand; the backward pass only scales it.

References:
    Hsu et al., 2024, "Liger kernel", https://arxiv.org/abs/2410.10989
    Szegedy et al., 2016, "Rethinking the Inception architecture" (label smoothing), https://arxiv.org/abs/1512.00567
    Chowdhery et al., 2022, "PaLM" (z-loss), https://arxiv.org/abs/2204.02311
    Gemma team, 2024, "Gemma 2" (capped logits), https://arxiv.org/abs/2408.00118
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from danlu.parts.compiled import compiled

CHUNK_BYTES = 1 << 26
"""How much memory the logits take that are held at a time."""
KEPT_BYTES = 1 << 28
"""How much memory the logits take, at most, that are kept from forward to backward where the gradient comes later."""
_COLUMNS = 1024


class CrossEntropy(NamedTuple):
    """Weighted sums over the targets.

    Attributes:
        loss: what is minimised: smoothed negative log-likelihood plus z-loss; the only one with a gradient.
        nll: negative log-likelihood in nats, neither smoothed nor regularised.
        z: squared log-normalisers.
        correct: how many targets were the most likely token (weighted).
    """

    loss: Float[Tensor, ""]
    nll: Float[Tensor, ""]
    z: Float[Tensor, ""]
    correct: Float[Tensor, ""]


def cross_entropy(
    hidden: Float[Tensor, "M D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None,
    tokens: Int[Tensor, " M"],
    weights: Float[Tensor, " M"],
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> CrossEntropy:
    """sum_m w_m [(1 - s) nll_m + s mean_v(-log p_mv) + z lse_m^2].

    Args:
        hidden: the rows that predict.
        weight: the head.
        bias: the head's bias.
        tokens: what each row should predict.
        weights: how much each counts.
        label_smoothing: s, in [0, 1).
        z_loss: z, ``>= 0``; keeps the log-normaliser near 0.
        softcap: c, where logits x are bent to ``c tanh(x / c)``.
    """
    return CrossEntropy(*_Fused.apply(hidden, weight, bias, tokens, weights, label_smoothing, z_loss, softcap))


def log_probs(
    hidden: Float[Tensor, "M D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None,
    tokens: Int[Tensor, " M"],
    *,
    softcap: float | None = None,
) -> Float[Tensor, " M"]:
    """Log p(token_m | row m), each with its own gradient; of many rows, most logits are made again in backward."""
    return _LogProbs.apply(hidden, weight, bias, tokens, softcap, torch.is_grad_enabled())


def chunk_rows(vocabulary: int, dtype: torch.dtype) -> int:
    """How many rows are taken at a time."""
    return max(128, CHUNK_BYTES // (vocabulary * dtype.itemsize))


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class _Statistics(NamedTuple):
    """Of each row's logits: the largest, the log-sum-exp, the target's, and (for smoothed labels) the mean."""

    peak: Tensor
    lse: Tensor
    target: Tensor
    mean: Tensor


@compiled
def _summarize(logits: Tensor) -> tuple[Tensor, Tensor]:
    wide = _precise(logits)
    peak = wide.amax(1)
    return peak, peak + (wide - peak[:, None]).exp().sum(1).log()


def _statistics(logits: Tensor, tokens: Tensor, label_smoothing: float) -> _Statistics:
    peak, lse = _summarize(logits)
    target = _precise(logits.gather(1, tokens[:, None]).squeeze(1))
    return _Statistics(peak, lse, target, _precise(logits.mean(1, dtype=lse.dtype)) if label_smoothing else lse)


def _sums(rows: _Statistics, weights: Tensor, label_smoothing: float, z_loss: float) -> Tensor:
    """The weighted sums of `CrossEntropy`, in its order."""
    nll, z = rows.lse - rows.target, rows.lse.square()
    loss = (1 - label_smoothing) * nll + label_smoothing * (rows.lse - rows.mean) + z_loss * z
    return torch.stack([loss, nll, z, (rows.target == rows.peak).to(nll.dtype)]) @ weights


@compiled
def _softmax_in_place(logits: Tensor, lse: Tensor, slope: Tensor, shift: Tensor) -> None:
    logits.copy_((_precise(logits) - lse[:, None]).exp() * slope[:, None] - shift[:, None])


@compiled
def _cap(logits: Tensor, softcap: float) -> None:
    logits.copy_((_precise(logits) / softcap).tanh() * softcap)


def _differentiate(
    logits: Tensor,
    lse: Tensor,
    tokens: Tensor,
    weights: Tensor,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
) -> None:
    """Turn logits, capped where they are, into the gradient of the weighted loss by the uncapped ones, in place."""
    bend = None if softcap is None else 1 - (logits / softcap).square()
    _softmax_in_place(logits, lse, weights * (1 + 2 * z_loss * lse), weights * (label_smoothing / logits.shape[1]))
    hit = torch.arange(len(tokens), device=tokens.device) * logits.shape[1] + tokens
    flat = logits.view(-1)  # a scatter along rows would copy them all in bf16
    flat[hit] = (flat[hit] - (1 - label_smoothing) * weights).to(logits.dtype)
    if bend is not None:
        logits.mul_(bend)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        weights: Tensor,
        label_smoothing: float,
        z_loss: float,
        softcap: float | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]  # type: ignore[attr-defined]
        precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        head, shift = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        totals = torch.zeros(4, dtype=precise, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.empty_like(weight, dtype=precise) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=precise) if needs_bias and bias is not None else None
        for chunk, logits in _chunks(hidden, head, shift, softcap):
            wanted, counted = tokens[chunk], weights[chunk].to(precise)
            rows = _statistics(logits, wanted, label_smoothing)
            totals += _sums(rows, counted, label_smoothing, z_loss)
            if any(ctx.needs_input_grad[:3]):  # type: ignore[attr-defined]
                _differentiate(logits, rows.lse, wanted, counted, label_smoothing, z_loss, softcap)
                _give_back(logits, hidden[chunk], head, chunk, grad_hidden, grad_weight, grad_bias)
        if grad_weight is not None and not len(hidden):
            grad_weight.zero_()
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)  # type: ignore[arg-type]
        loss, nll, z, correct = totals.unbind()
        ctx.mark_non_differentiable(nll, z, correct)
        return loss, nll, z, correct

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        # In place: they are nobody else's, and as large as the head. A second backward pass is told so by torch.
        scaled = [None if g is None else g.mul_(grad.to(g.dtype)) for g in ctx.saved_tensors]  # type: ignore[attr-defined]
        return (*scaled, *(None,) * 5)


def _chunks(
    hidden: Tensor, head: Tensor, shift: Tensor | None, softcap: float | None, first: int = 0, apart: int = 0
) -> Iterator[tuple[slice, Tensor]]:
    """A few rows at a time, from row `first` on, in one buffer used again; those before `apart` in their own."""
    step = chunk_rows(len(head), head.dtype)
    buffer: Tensor | None = None
    for start in range(first, len(hidden), step):
        chunk = slice(start, min(start + step, len(hidden)))
        if buffer is None or start <= apart:
            buffer = hidden.new_empty(chunk.stop - chunk.start, len(head))
        logits = _product(hidden[chunk], head, buffer[: chunk.stop - chunk.start])
        if shift is not None:
            logits.add_(shift)
        if softcap is not None:
            _cap(logits, softcap)
        yield chunk, logits


def _product(hidden: Tensor, head: Tensor, out: Tensor) -> Tensor:
    """The logits ``hidden head^T``; float32 on a CPU by parts of the vocabulary, whose columns its caches hold."""
    if hidden.device.type != "cpu" or hidden.dtype != torch.float32:
        return torch.mm(hidden, head.t(), out=out)
    for start in range(0, len(head), _COLUMNS):
        torch.mm(hidden, head[start : start + _COLUMNS].t(), out=out[:, start : start + _COLUMNS])
    return out


def _give_back(
    slope: Tensor,
    hidden: Tensor,
    head: Tensor,
    chunk: slice,
    grad_hidden: Tensor | None,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
) -> None:
    """Multiply the gradient of a chunk's logits back onto its inputs; the first chunk sets what the others add to."""
    if grad_hidden is not None:
        torch.mm(slope, head, out=grad_hidden[chunk])
    first = chunk.start == 0
    if grad_weight is not None and slope.dtype == grad_weight.dtype:
        torch.mm(slope.t(), hidden, out=grad_weight) if first else grad_weight.addmm_(slope.t(), hidden)
    elif grad_weight is not None:
        part = slope.t() @ hidden
        grad_weight.copy_(part) if first else grad_weight.add_(part)
    if grad_bias is not None:
        grad_bias += slope.sum(0, dtype=grad_bias.dtype)


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        softcap: float | None,
        learning: bool,
    ) -> Tensor:
        head, shift = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        lse, target = (hidden.new_empty(len(hidden), dtype=precise) for _ in range(2))
        step, kept = chunk_rows(len(head), head.dtype), list[Tensor]()
        room = KEPT_BYTES // (len(head) * head.dtype.itemsize) // step if learning else 0
        for chunk, logits in _chunks(hidden, head, shift, softcap, apart=room * step):
            rows = _statistics(logits, tokens[chunk], 0.0)
            lse[chunk], target[chunk] = rows.lse, rows.target
            if len(kept) < room:
                kept.append(logits)
        ctx.save_for_backward(hidden, weight, bias, tokens, lse, *kept)  # type: ignore[arg-type]
        ctx.softcap = softcap  # type: ignore[attr-defined]
        return target - lse

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, tokens, lse, *kept = ctx.saved_tensors  # type: ignore[attr-defined]
        softcap = ctx.softcap  # type: ignore[attr-defined]
        head, shift = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        make = torch.empty_like if len(hidden) else torch.zeros_like  # what the first chunk sets
        made = (hidden, make), (weight, make), (bias, torch.zeros_like)
        wanted = [None if x is None else new(x) for x, new in made]
        wanted = [x if needed else None for x, needed in zip(wanted, ctx.needs_input_grad[:3], strict=True)]  # type: ignore[attr-defined]
        step = chunk_rows(len(head), head.dtype)
        there = ((slice(i * step, i * step + len(logits)), logits) for i, logits in enumerate(kept))
        again = _chunks(hidden, head, shift, softcap, first=min(len(kept) * step, len(hidden)))
        for chunk, logits in chain(there, again):
            _differentiate(logits, lse[chunk], tokens[chunk], -grad[chunk], 0.0, 0.0, softcap)
            _give_back(logits, hidden[chunk], head, chunk, *wanted)
        return (*wanted, None, None, None)
