"""One step down a loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def descend(
    optimizer: torch.optim.Optimizer, loss: Tensor, weights: Sequence[nn.Parameter], clip_norm: float | None = None
) -> None:
    """Move some weights down a loss; none has a gradient before or after, so no other is moved.

    Args:
        optimizer: which moves them.
        loss: a scalar.
        weights: which.
        clip_norm: their gradient is scaled down to this norm when it is longer; None never does.
    """
    for p, gradient in zip(weights, torch.autograd.grad(loss, list(weights)), strict=True):
        p.grad = gradient
    if clip_norm is not None:
        clip(weights, clip_norm)
    optimizer.step()
    for p in weights:
        p.grad = None


@torch.no_grad()
def clip(weights: Sequence[nn.Parameter], clip_norm: float) -> None:
    """Scale the gradient of some weights, together, down to a norm when it is longer."""
    gradients = [p.grad for p in weights if p.grad is not None]
    norm = gradients[0].norm() if len(gradients) == 1 else torch.stack([g.norm() for g in gradients]).norm()
    scale = (clip_norm / (norm + 1e-6)).clamp_(max=1.0)
    for g in gradients:
        g.mul_(scale)
