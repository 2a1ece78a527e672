"""Feed-forward layers: what a block does to each row alone."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.parts.linear import Linear


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)).

    References:
        Shazeer, 2020, "GLU variants improve transformer", https://arxiv.org/abs/2002.05202
    """

    def __init__(self, width: int, inner: int, *, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = Linear(width, inner, bias=bias)
        self.up_proj = Linear(width, inner, bias=bias)
        self.down_proj = Linear(inner, width, bias=bias)

    def forward(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """Apply the layer to every row."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class GELUFeedForward(nn.Module):
    """proj(gelu(fc(x))), with GELU by its tanh approximation when `tanh`.

    References:
        Hendrycks and Gimpel, 2016, "Gaussian error linear units", https://arxiv.org/abs/1606.08415
    """

    def __init__(self, width: int, inner: int, *, tanh: bool) -> None:
        super().__init__()
        self.c_fc = Linear(width, inner, bias=True)
        self.c_proj = Linear(inner, width, bias=True)
        self.approximate = "tanh" if tanh else "none"

    def forward(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """Apply the layer to every row."""
        return self.c_proj(F.gelu(self.c_fc(x), approximate=self.approximate))
