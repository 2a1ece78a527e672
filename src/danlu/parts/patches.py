"""A small transformer over the patches of images: an image in, an image of the same sides out.

- the patches of an image are one full segment of a pack, so all images' rows lie end to end and nothing is padded
- a learned vector for each patch's place
- pre-norm blocks without weights of their own; the context says how each is scaled, shifted and gated, by one product
  for all blocks; gates begin at zero, so that every block begins as the identity

References:
    Dosovitskiy et al., 2021, "An image is worth 16x16 words", https://arxiv.org/abs/2010.11929
    Peebles and Xie, 2023, "Scalable diffusion models with transformers" (adaLN-Zero), https://arxiv.org/abs/2212.09748
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.errors import UnsupportedError
from danlu.packed import ROOT, Packed
from danlu.parts.attention import Backend, attention
from danlu.parts.attention_alike import Alike
from danlu.parts.linear import Linear
from danlu.parts.network import Patches
from danlu.sight import Sight

_EPS = 1e-6
_MODULATIONS = 6
"""Scale, shift and gate, of attention and of the feed-forward."""


class PatchBlock(nn.Module):
    """x += g_1 attention(m_1(x)),  x += g_2 W_2 gelu(W_1 m_2(x)),  where m(x) = (1 + scale) norm(x) + shift.

    Args:
        config: its widths.
    """

    def __init__(self, config: Patches) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        inner = config.feedforward * width
        self.qkv, self.out = Linear(width, 3 * width, bias=True), Linear(width, width, bias=True)
        self.up, self.down = Linear(width, inner, bias=True), Linear(inner, width, bias=True)

    def forward(
        self, x: Float[Tensor, "N P D"], told: Sequence[Tensor], sight: Sight, backend: Backend | None
    ) -> Float[Tensor, "N P D"]:
        """Apply it to the rows of N images of P patches, as it is told: six times ``[N, 1, D]``."""
        scale, shift, gate, scale_up, shift_up, gate_up = told
        q, k, v = self.qkv(_modulated(x, scale, shift)).view(-1, 3, self.heads, x.shape[2] // self.heads).unbind(1)
        mixed = attention(q, k, v, sight, backend=backend).reshape(x.shape)
        x = torch.addcmul(x, gate, self.out(mixed))
        h = self.down(F.gelu(self.up(_modulated(x, scale_up, shift_up)), approximate="tanh"))
        return torch.addcmul(x, gate_up, h)


class PatchNetwork(nn.Module):
    """A transformer over patches.

    Args:
        shape: of the image, ``(C, H, W)``.
        outputs: channels out.
        context: how many numbers the context has; 0 where there is none.
        config: its widths.
        seed: weights follow from it.
        zero_last: begin with a last layer of zeros.

    Raises:
        UnsupportedError: when the image is not made of whole patches.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        outputs: int,
        context: int,
        config: Patches,
        seed: int,
        *,
        zero_last: bool = False,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        side = config.patch
        if height % side or width % side:
            common = math.gcd(height, width)
            fitting = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
            what = f"an image of {height} by {width} pixels is not made of patches of {side} by {side}"
            raise UnsupportedError(what, where="model.patch", do=f"Patches could have sides of {fitting}.")
        self.side, self.outputs = side, outputs
        self.grid = (height // side, width // side)
        self.places = nn.Parameter(torch.zeros(self.grid[0] * self.grid[1], config.width))
        self.enter = Linear(channels * side * side, config.width, bias=True)
        self.blocks = nn.ModuleList(PatchBlock(config) for _ in range(config.layers))
        self.embed = Linear(context, config.width, bias=True) if context else None
        # Of all blocks and, at the end, scale and shift before the last layer.
        self.tell = Linear(config.width if context else 0, (_MODULATIONS * config.layers + 2) * config.width, bias=True)
        self.last = Linear(config.width, outputs * side * side, bias=True)
        _initialize(self, torch.Generator().manual_seed(seed % 2**63))
        for layer in (self.tell, *([self.last] if zero_last else [])):
            nn.init.zeros_(layer.weight)
        self._sight: Sight | None = None

    def forward(
        self, x: Float[Tensor, "N C H W"], context: Float[Tensor, "N K"] | None = None
    ) -> Float[Tensor, "N O H W"]:
        """What it makes of each image, given what the outputs depend on beside it."""
        sight, twice = self._seen(len(x), x.device), x.requires_grad
        backend = Alike(len(self.places), twice=twice) if twice or x.device.type == "cpu" else None
        told = x.new_zeros(1, 0) if self.embed is None else F.silu(self.embed(context))
        *told_blocks, scale, shift = self.tell(told)[:, None].tensor_split(_MODULATIONS * len(self.blocks) + 2, 2)
        x = self.enter(self._cut(x)) + self.places
        for i, block in enumerate(self.blocks):
            x = block(x, told_blocks[_MODULATIONS * i : _MODULATIONS * (i + 1)], sight, backend)
        return self._joined(self.last(_modulated(x, scale, shift)))

    def _cut(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N P I"]:
        """The patches of each image, row by row, and of each its numbers."""
        (rows, columns), side = self.grid, self.side
        cut = x.view(len(x), -1, rows, side, columns, side)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(len(x), rows * columns, -1)

    def _joined(self, y: Float[Tensor, "N P I"]) -> Float[Tensor, "N O H W"]:
        """The images that these patches make."""
        (rows, columns), side = self.grid, self.side
        cut = y.view(len(y), rows, columns, self.outputs, side, side)
        return cut.permute(0, 3, 1, 4, 2, 5).reshape(len(y), self.outputs, rows * side, columns * side)

    def _seen(self, num: int, device: torch.device) -> Sight:
        """Who sees whom among the patches of so many images; the last answer is kept."""
        length = len(self.places)
        known = self._sight
        if known is None or len(known.first) != num * length or known.first.device != device:
            self._sight = known = packed_images(num, length).to(device).sight
        return known


def packed_images(num: int, length: int) -> Packed:
    """So many images of so many patches each, end to end, each a full segment."""
    return Packed(
        tokens=torch.zeros(num * length, dtype=torch.int64),
        positions=torch.arange(length).repeat(num),
        cu_seqlens=torch.arange(num + 1) * length,
        parent=torch.full((num,), ROOT),
        causal=torch.zeros(num, dtype=torch.bool),
        sample=torch.arange(num),
    )


def _modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(1 + scale) norm(x) + shift."""
    normed = F.layer_norm(x, x.shape[-1:], eps=_EPS)
    return torch.addcmul(normed + shift, normed, scale)


@torch.no_grad()
def _initialize(model: nn.Module, chance: torch.Generator) -> None:
    """Matrices by Glorot's rule, no biases, places of deviation 0.02."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.zero_()
        elif parameter.numel():
            nn.init.xavier_uniform_(parameter, generator=chance)
    for name, parameter in model.named_parameters():
        if name == "places":
            parameter.normal_(std=0.02, generator=chance)
