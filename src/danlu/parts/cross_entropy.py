"""The head and the cross-entropy as one operation, a chunk of rows at a time.

Logits of a chunk are made, turned into their own gradient in place, multiplied back, and forgotten: ``[T, V]`` never exists, and
rows without a target never come here. The gradient is taken in the forward pass, where the logits are at hand; the backward
pass only scales it.

References:
    Hsu et al., 2024, "Liger kernel", https://arxiv.org/abs/2410.10989
    Szegedy et al., 2016, "Rethinking the Inception architecture" (label smoothing), https://arxiv.org/abs/1512.00567
    Chowdhery et al., 2022, "PaLM" (z-loss), https://arxiv.org/abs/2204.02311
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from danlu.parts.compiled import compiled

CHUNK_ELEMENTS = 1 << 24
"""How many logits are held at a time."""


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
    """
    return CrossEntropy(*_Fused.apply(hidden, weight, bias, tokens, weights, label_smoothing, z_loss))


def log_probs(
    hidden: Float[Tensor, "M D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None,
    tokens: Int[Tensor, " M"],
) -> Float[Tensor, " M"]:
    """log p(token_m | row m), each with its own gradient; logits are made again in the backward pass."""
    return _LogProbs.apply(hidden, weight, bias, tokens)


def chunk_rows(vocabulary: int) -> int:
    """How many rows are taken at a time."""
    return max(128, CHUNK_ELEMENTS // vocabulary)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(hidden, weight, bias)


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


@compiled
def _score(
    logits: Tensor, tokens: Tensor, weights: Tensor, label_smoothing: float, z_loss: float
) -> tuple[Tensor, Tensor]:
    """Each row's weighted sums ``[m, 4]`` as in `CrossEntropy`, and the gradient of the loss by the logits."""
    wide = _precise(logits)
    vocabulary = logits.shape[1]
    peak = wide.amax(1, keepdim=True)
    exponentials = (wide - peak).exp()
    total = exponentials.sum(1, keepdim=True)
    lse = (peak + total.log()).squeeze(1)
    target = wide.gather(1, tokens[:, None]).squeeze(1)
    nll = lse - target
    smoothed = (1 - label_smoothing) * nll
    if label_smoothing:
        smoothed = smoothed + label_smoothing * (lse - wide.mean(1))
    loss = smoothed + z_loss * lse.square()
    sums = torch.stack([loss, nll, lse.square(), (target == peak.squeeze(1)).to(lse.dtype)], 1) * weights[:, None]
    slope = (weights * (1 + 2 * z_loss * lse))[:, None] / total
    hit = torch.arange(vocabulary, device=logits.device) == tokens[:, None]
    grad = exponentials * slope - weights[:, None] * torch.where(hit, 1 - label_smoothing, 0.0)
    if label_smoothing:
        grad = grad - (weights * (label_smoothing / vocabulary))[:, None]
    return sums, grad.to(logits.dtype)


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
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]  # type: ignore[attr-defined]
        precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        head, shift = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        totals = torch.zeros(4, dtype=precise, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=precise) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=precise) if needs_bias and bias is not None else None
        step = chunk_rows(len(weight))
        for start in range(0, len(hidden), step):
            chunk = slice(start, start + step)
            logits = _logits(hidden[chunk], head, shift)
            sums, grad = _score(logits, tokens[chunk], weights[chunk].to(precise), label_smoothing, z_loss)
            totals += sums.sum(0)
            if grad_hidden is not None:
                torch.mm(grad, head, out=grad_hidden[chunk])
            if grad_weight is not None:
                _accumulate(grad_weight, grad, hidden[chunk])
            if grad_bias is not None:
                grad_bias += grad.sum(0, dtype=precise)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        loss, nll, z, correct = totals.unbind()
        ctx.mark_non_differentiable(nll, z, correct)
        return loss, nll, z, correct

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if g is None else g * grad.to(g.dtype) for g in ctx.saved_tensors]  # type: ignore[attr-defined]
        return (*scaled, None, None, None, None)


def _accumulate(total: Tensor, grad: Tensor, hidden: Tensor) -> None:
    """total += grad^T hidden, in total's precision."""
    if grad.dtype == total.dtype:
        total.addmm_(grad.t(), hidden)
    else:
        total += grad.t() @ hidden


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor
    ) -> Tensor:
        head, shift = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        step = chunk_rows(len(weight))
        pieces = [
            _precise(_logits(rows, head, shift)).log_softmax(-1).gather(1, wanted[:, None]).squeeze(1)
            for rows, wanted in zip(hidden.split(step), tokens.split(step), strict=True)
        ]
        ctx.save_for_backward(hidden, weight, bias, tokens)
        return torch.cat(pieces)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, tokens = ctx.saved_tensors  # type: ignore[attr-defined]
        head, shift = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight)
        grad_bias = None if bias is None else torch.zeros_like(bias)
        step = chunk_rows(len(weight))
        for start in range(0, len(hidden), step):
            chunk = slice(start, start + step)
            logits = _logits(hidden[chunk], head, shift)
            _, slope = _score(logits, tokens[chunk], -grad[chunk], 0.0, 0.0)
            grad_hidden[chunk] = slope @ head
            _accumulate(grad_weight, slope, hidden[chunk])
            if grad_bias is not None:
                grad_bias += slope.sum(0, dtype=grad_bias.dtype)
        return grad_hidden, grad_weight, grad_bias, None
