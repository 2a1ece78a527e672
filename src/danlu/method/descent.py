"""One step down a loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from danlu.acting import Turn


def descend(turn: Turn, loss: Tensor, weights: Sequence[nn.Parameter]) -> None:
    """Move some weights down a loss; none has a gradient before or after, so no other is moved.

    Args:
        turn: whose optimiser moves them, and which says how long a gradient may be.
        loss: a scalar.
        weights: which.
    """
    for p, gradient in zip(weights, torch.autograd.grad(loss, list(weights)), strict=True):
        p.grad = gradient
    step(turn, weights)


@torch.no_grad()
def step(turn: Turn, weights: Sequence[nn.Parameter]) -> None:
    """Move some weights by their gradients, and leave them without.

    Args:
        turn: see `descend`.
        weights: which; no other has a gradient.
    """
    gradients = [p.grad for p in weights if p.grad is not None]
    norm = math.sqrt(sum(float(g.norm()) ** 2 for g in gradients))
    turn.norms.append(norm)
    if turn.clip_norm is not None and norm > turn.clip_norm:
        for g in gradients:
            g.mul_(turn.clip_norm / (norm + 1e-6))
    turn.optimizer.step()
    for p in weights:
        p.grad = None
