"""A small U-Net: an image in, an image of the same sides out, and a context that every block sees.

- residual blocks: group norm, SiLU, convolution, twice; the second convolution of each begins at zero
- the context scales and shifts what the second norm gives (one product makes that of all blocks)
- half the sides at each scale, rounded up, by a convolution of stride 2; back by repeating pixels, cut to size
- on the way up, every block takes in what its counterpart on the way down gave

References:
    Ronneberger, Fischer and Brox, 2015, "U-Net", https://arxiv.org/abs/1505.04597
    Wu and He, 2018, "Group normalization", https://arxiv.org/abs/1803.08494
    Perez et al., 2018, "FiLM", https://arxiv.org/abs/1709.07871
    Ho, Jain and Abbeel, 2020, "Denoising diffusion probabilistic models", https://arxiv.org/abs/2006.11239
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.errors import UnsupportedError
from danlu.parts.linear import Linear
from danlu.parts.network import UNet


class Convolution(nn.Module):
    """A 3 by 3 convolution (or one by one) that keeps the sides, or halves them, rounded up.

    Args:
        inputs: channels in.
        outputs: channels out.
        side: of its kernel, 1 or 3.
        stride: 1, or 2 to halve.
    """

    def __init__(self, inputs: int, outputs: int, *, side: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs, side, side))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.stride, self.padding = stride, side // 2

    def forward(self, x: Float[Tensor, "N I h w"]) -> Float[Tensor, "N O H W"]:
        """Apply it."""
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding)


class Norm(nn.Module):
    """Group norm: y = w (x - mean) / sqrt(var + eps) + b over the channels of a group and all pixels.

    Args:
        width: channels.
        groups: as many, or fewer as divide the channels.
    """

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.groups = math.gcd(width, groups)

    def forward(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        """Normalise."""
        return F.group_norm(x, self.groups, self.weight, self.bias)


class Block(nn.Module):
    """y = x + conv(silu((1 + scale) norm(conv(silu(norm(x)))) + shift)), x by a product where widths differ.

    Args:
        inputs: channels in.
        outputs: channels out.
        groups: of its norms.
    """

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.first_norm, self.first = Norm(inputs, groups), Convolution(inputs, outputs)
        self.second_norm, self.second = Norm(outputs, groups), Convolution(outputs, outputs)
        self.skip = None if inputs == outputs else Convolution(inputs, outputs, side=1)
        self.width = outputs

    def forward(self, x: Float[Tensor, "N I H W"], film: Float[Tensor, "N F 1 1"] | None) -> Float[Tensor, "N O H W"]:
        """Apply it, with the scales and behind them the shifts of its channels, where there is a context."""
        h = self.second_norm(self.first(F.silu(self.first_norm(x))))
        if film is not None:
            scale, shift = film.split(self.width, 1)
            h = torch.addcmul(h + shift, h, scale)
        h = self.second(F.silu(h))
        return h + (x if self.skip is None else self.skip(x))


class UNetwork(nn.Module):
    """A U-Net.

    Args:
        shape: of the image, ``(C, H, W)``.
        outputs: channels out.
        context: how many numbers the context has; 0 where there is none.
        config: its widths.
        seed: weights follow from it.
        zero_last: begin with a last convolution of zeros.

    Raises:
        UnsupportedError: when the image is too small to be halved so often.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        outputs: int,
        context: int,
        config: UNet,
        seed: int,
        *,
        zero_last: bool = False,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        widths = [config.width * factor for factor in config.factors]
        if min(height, width) < 2 ** (len(widths) - 1):
            what = f"an image of {height} by {width} pixels cannot be halved {len(widths) - 1} times"
            raise UnsupportedError(what, where="model.factors", do="Give fewer factors.")
        self.enter = Convolution(channels, widths[0])
        self.down, self.halve, kept = self._way_down(widths, config)
        self.middle = Block(widths[-1], widths[-1], config.groups)
        self.up, self.grow = self._way_up(widths, kept, config)
        self.last_norm, self.last = Norm(widths[0], config.groups), Convolution(widths[0], outputs)
        blocks = [*self.down, self.middle, *self.up]
        self._films = [2 * block.width for block in blocks if isinstance(block, Block)]
        told = 4 * config.width
        self.embed = Linear(context, told, bias=True) if context else None
        self.film = Linear(told, sum(self._films), bias=True) if context else None
        self._per_scale = config.blocks
        _initialize(self, torch.Generator().manual_seed(seed % 2**63))
        zeros = [block.second for block in blocks if isinstance(block, Block)]
        for layer in [*zeros, *([self.last] if zero_last else [])]:
            nn.init.zeros_(layer.weight)

    @staticmethod
    def _way_down(widths: Sequence[int], config: UNet) -> tuple[nn.ModuleList, nn.ModuleList, list[int]]:
        """Blocks, what halves between scales, and the channels of all that is kept for the way up."""
        blocks, halves, kept, here = nn.ModuleList(), nn.ModuleList(), [], widths[0]
        for scale, width in enumerate(widths):
            for _ in range(config.blocks):
                blocks.append(Block(here, width, config.groups))
                here = width
                kept.append(here)
            if scale < len(widths) - 1:
                halves.append(Convolution(here, here, stride=2))
        return blocks, halves, kept

    @staticmethod
    def _way_up(widths: Sequence[int], kept: list[int], config: UNet) -> tuple[nn.ModuleList, nn.ModuleList]:
        """Blocks, each taking in what was kept, last first; and what follows the repeating of pixels."""
        blocks, grows, here, left = nn.ModuleList(), nn.ModuleList(), widths[-1], list(kept)
        for scale in range(len(widths) - 1, -1, -1):
            for _ in range(config.blocks):
                blocks.append(Block(here + left.pop(), widths[scale], config.groups))
                here = widths[scale]
            if scale:
                grows.append(Convolution(here, here))
        return blocks, grows

    def forward(
        self, x: Float[Tensor, "N C H W"], context: Float[Tensor, "N K"] | None = None
    ) -> Float[Tensor, "N O H W"]:
        """What it makes of each image, given what the outputs depend on beside it."""
        films = self._film(context)
        x, kept, num = self.enter(x), [], 0
        for i, block in enumerate(self.down):
            if i and i % self._per_scale == 0:
                x = self.halve[i // self._per_scale - 1](x)
            x = block(x, films[num])
            kept.append(x)
            num += 1
        x = self.middle(x, films[num])
        num += 1
        for i, block in enumerate(self.up):
            skip = kept.pop()
            if i and i % self._per_scale == 0:
                larger = F.interpolate(x, size=skip.shape[2:], mode="nearest")
                x = self.grow[i // self._per_scale - 1](larger)
            x = block(torch.cat([x, skip], 1), films[num])
            num += 1
        return self.last(F.silu(self.last_norm(x)))

    def _film(self, context: Tensor | None) -> Sequence[Tensor | None]:
        """The scales and shifts of every block."""
        if self.embed is None or self.film is None:
            return [None] * len(self._films)
        told = self.film(F.silu(self.embed(context)))
        return told[:, :, None, None].split(self._films, 1)


@torch.no_grad()
def _initialize(model: nn.Module, chance: torch.Generator) -> None:
    """Uniform weights of variance 1 / inputs, no biases; norms are as they were made."""
    for module in model.modules():
        if isinstance(module, Convolution | Linear):
            bound = math.sqrt(3.0 / module.weight[0].numel())
            module.weight.uniform_(-bound, bound, generator=chance)
            if module.bias is not None:
                module.bias.zero_()
