"""A small residual network of convolutions: an image in, an image of the same size out."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


class Convolution(nn.Module):
    """A convolution that keeps an image's size.

    Args:
        inputs: channels in.
        outputs: channels out.
        side: of its kernel, odd.
        chance: where weights are drawn from, within 1 / sqrt(inputs of one output); None begins with zeros.
    """

    def __init__(self, inputs: int, outputs: int, side: int, chance: torch.Generator | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, side, side))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.padding = side // 2
        if chance is not None:
            bound = 1 / math.sqrt(inputs * side * side)
            for parameter in (self.weight, self.bias):
                nn.init.uniform_(parameter, -bound, bound, generator=chance)

    def forward(self, x: Float[Tensor, "N I H W"]) -> Float[Tensor, "N O H W"]:
        """The convolution of each image."""
        return F.conv2d(x, self.weight, self.bias, padding=self.padding)


class ResidualConvolutions(nn.Module):
    """h <- h + conv(relu(conv(relu(h)))), block by block; what comes out is 0 at the start.

    References:
        He et al., 2016, "Identity mappings in deep residual networks", https://arxiv.org/abs/1603.05027

    Args:
        inputs: channels in.
        outputs: channels out.
        channels: channels of h.
        blocks: how many blocks.
        context: how many numbers the context has, a linear function of which is added to h; 0 where there is none.
        seed: weights follow from it.
    """

    def __init__(self, inputs: int, outputs: int, channels: int, blocks: int, context: int, seed: int) -> None:
        super().__init__()
        chance = torch.Generator().manual_seed(seed % 2**63)
        self.first = Convolution(inputs, channels, 3, chance)
        self.told = nn.Parameter(torch.zeros(channels, context)) if context else None
        self.blocks = nn.ModuleList(Convolution(channels, channels, 3, chance) for _ in range(2 * blocks))
        self.last = Convolution(channels, outputs, 1, None)

    def forward(self, x: Float[Tensor, "N I H W"], context: Tensor | None = None) -> Float[Tensor, "N O H W"]:
        """What it makes of each image."""
        h = self.first(x)
        if context is not None and self.told is not None:
            h = h + F.linear(context, self.told)[..., None, None]
        for i in range(0, len(self.blocks), 2):
            h = h + self.blocks[i + 1](F.relu(self.blocks[i](F.relu(h))))
        return self.last(F.relu(h))
