"""One step down a loss."""

from __future__ import annotations

import math
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
    step(optimizer, weights, clip_norm)


@torch.no_grad()
def step(optimizer: torch.optim.Optimizer, weights: Sequence[nn.Parameter], clip_norm: float | None = None) -> None:
    """Move some weights by their gradients, and leave them without.

    Args:
        optimizer: which moves them.
        weights: which; no other has a gradient.
        clip_norm: their gradient is scaled down to this norm when it is longer; None never does.
    """
    if clip_norm is not None:
        gradients = [p.grad for p in weights if p.grad is not None]
        norm = math.sqrt(sum(float(g.norm()) ** 2 for g in gradients))
        if norm > clip_norm:
            for g in gradients:
                g.mul_(clip_norm / (norm + 1e-6))
    optimizer.step()
    for p in weights:
        p.grad = None
