"""Normalisation of each row, computed in float32 whatever the activations' dtype.

References:
    Ba, Kiros and Hinton, 2016, "Layer normalization", https://arxiv.org/abs/1607.06450
    Zhang and Sennrich, 2019, "Root mean square layer normalization", https://arxiv.org/abs/1910.07467
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class RMSNorm(nn.Module):
    """y = w x / sqrt(mean(x^2) + eps)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Normalise over the last axis."""
        wide = _precise(x)
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (normed.to(x.dtype) * self.weight.to(x.dtype)).to(x.dtype)


class LayerNorm(nn.Module):
    """y = w (x - mean(x)) / sqrt(var(x) + eps) + b."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Normalise over the last axis."""
        wide = _precise(x)
        normed = F.layer_norm(wide, wide.shape[-1:], self.weight.to(wide.dtype), self.bias.to(wide.dtype), self.eps)
        return normed.to(x.dtype)
