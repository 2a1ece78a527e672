"""Linear layers and dropout whose arithmetic follows their input's precision.

Parameters stay as they are kept (float32 while training); the products run in the dtype of the activations, and
gradients come back in the parameters' dtype, so that accumulating them over packs loses nothing.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.random import dropout


class Linear(nn.Module):
    """y = x W^T + b, in the dtype of x.

    Args:
        inputs: the width of x.
        outputs: the width of y.
        bias: whether there is a b.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        """Apply the layer to every row."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Dropout(nn.Module):
    """Zero a fraction p of the elements while training, keyed by row and place; nothing without keys.

    Args:
        p: the fraction, ``0 <= p < 1``.
    """

    place: Tensor

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.register_buffer("place", torch.zeros((), dtype=torch.int32), persistent=False)

    def forward(self, x: Float[Tensor, "T D"], keys: Int[Tensor, " T"] | None) -> Float[Tensor, "T D"]:
        """Drop, where keys are given and p is not 0."""
        return x if keys is None or self.p == 0 else dropout(x, keys, self.place, self.p)
