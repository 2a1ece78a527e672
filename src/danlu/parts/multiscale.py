"""Affine coupling of images at several scales.

At each scale every other pixel is moved as the rest say, as on a checkerboard, by turns; then each square of two by two
pixels becomes one pixel of four times the channels, half of the channels are moved as the others say, by turns; and
half of what there is then is noise already, while the other half goes on to the next scale.

References:
    Dinh, Sohl-Dickstein and Bengio, 2016, "Density estimation using real NVP", https://arxiv.org/abs/1605.08803
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.density import Space
from danlu.parts.bijection import Affine
from danlu.parts.flow import Flow
from danlu.random import fold

Build: TypeAlias = Callable[[tuple[int, int, int], tuple[int, int, int], int], nn.Module]
"""A network of images, given the shapes that go in and out, and a seed; at the start what comes out is 0."""
Show: TypeAlias = Callable[[Tensor], None]

_PIXELS, _CHANNELS, _LAST = 3, 3, 4
"""Steps of each kind at a scale, and at the last one, where all are of the first kind; as in the paper."""


class PixelCoupling(nn.Module):
    """Every other pixel is moved as the rest say.

    Args:
        shape: ``(C, H, W)``.
        affine: how.
        odd: whether the pixel in the corner is moved.
        build: makes the network.
        seed: its weights follow from it.
    """

    held: Tensor

    def __init__(self, shape: tuple[int, int, int], affine: Affine, odd: bool, build: Build, seed: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.affine = affine
        self.network = build(shape, (2 * channels, height, width), seed)
        board = (torch.arange(height)[:, None] + torch.arange(width)) % 2
        self.register_buffer("held", (board if odd else 1 - board).float(), persistent=False)

    def _told(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """The s and t of each number; both 0 of those that are held."""
        a, t = self.network(x * self.held, context).chunk(2, 1)
        moved = 1 - self.held
        return self.affine.log_slope(a) * moved, t * moved

    def forward(self, x: Float[Tensor, "N C H W"], context: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the images become, and the log-determinant."""
        s, t = self._told(x, context)
        return torch.addcmul(t, x, s.exp()), s.flatten(1).sum(1)

    def inverse(self, y: Float[Tensor, "N C H W"], context: Tensor | None) -> Float[Tensor, "N C H W"]:
        """What becomes these images."""
        s, t = self._told(y, context)
        return (y - t) * (-s).exp()


class ChannelCoupling(nn.Module):
    """Half of the channels are moved as the others say.

    Args:
        shape: ``(C, H, W)``, of an even number of channels.
        affine: how.
        odd: whether the first half is moved.
        build: makes the network.
        seed: its weights follow from it.
    """

    def __init__(self, shape: tuple[int, int, int], affine: Affine, odd: bool, build: Build, seed: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.affine, self.odd = affine, odd
        self.network = build((channels // 2, height, width), (channels, height, width), seed)

    def forward(self, x: Float[Tensor, "N C H W"], context: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the images become, and the log-determinant."""
        held, moved = x.chunk(2, 1)[:: -1 if self.odd else 1]
        a, t = self.network(held, context).chunk(2, 1)
        s = self.affine.log_slope(a)
        return self._joined(held, torch.addcmul(t, moved, s.exp())), s.flatten(1).sum(1)

    def inverse(self, y: Float[Tensor, "N C H W"], context: Tensor | None) -> Float[Tensor, "N C H W"]:
        """What becomes these images."""
        held, moved = y.chunk(2, 1)[:: -1 if self.odd else 1]
        a, t = self.network(held, context).chunk(2, 1)
        return self._joined(held, (moved - t) * (-self.affine.log_slope(a)).exp())

    def _joined(self, held: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([moved, held] if self.odd else [held, moved], 1)


class MultiScale(Flow):
    """Affine coupling of images at several scales.

    Args:
        space: what a row is, ``(C, H, W)``.
        affine: how numbers are moved.
        scales: how many scales, or as many as the sides can be halved for.
        build: makes the networks.
        seed: their weights follow from it.

    Attributes:
        pixels: for each scale its couplings of pixels.
        channels: for each scale but the last its couplings of channels.
    """

    def __init__(self, space: Space, affine: Affine, scales: int, build: Build, seed: int) -> None:
        super().__init__(space)
        channels, height, width = space.shape
        self.pixels, self.channels = nn.ModuleList(), nn.ModuleList()
        for scale in range(scales):
            last = scale == scales - 1 or height % 2 or width % 2 or height * width <= 4
            shape = (channels, height, width)
            self.pixels.append(
                nn.ModuleList(
                    PixelCoupling(shape, affine, bool(k % 2), build, fold(seed, "pixels", scale, k))
                    for k in range(_LAST if last else _PIXELS)
                )
            )
            if last:
                break
            shape = (4 * channels, height // 2, width // 2)
            self.channels.append(
                nn.ModuleList(
                    ChannelCoupling(shape, affine, bool(k % 2), build, fold(seed, "channels", scale, k))
                    for k in range(_CHANNELS)
                )
            )
            channels, height, width = 2 * channels, height // 2, width // 2

    def forward(self, x: Float[Tensor, "N C H W"], context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `Flow`."""
        return self._down(0, x, context)

    def log_prob(self, x: Float[Tensor, "N C H W"], context: Tensor | None = None) -> Float[Tensor, " N"]:
        """See `Density`: exact."""
        z, log_det = self(x, context)
        return self.prior.log_prob(z.flatten(1)) + log_det

    def _down(self, scale: int, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for coupling in _steps(self.pixels[scale]):
            x, log_det = coupling(x, context)
            total = total + log_det
        if scale == len(self.channels):
            return x, total
        x = F.pixel_unshuffle(x, 2)
        for coupling in _steps(self.channels[scale]):
            x, log_det = coupling(x, context)
            total = total + log_det
        on, noise = x.chunk(2, 1)
        on, log_det = self._down(scale + 1, on, context)
        return F.pixel_shuffle(torch.cat([on, noise], 1), 2), total + log_det

    def stages(self, z: Float[Tensor, "N C H W"], context: Tensor | None, kept: list[Tensor] | None) -> Tensor:
        """See `Flow`."""
        if kept is None:
            return self._up(0, z, context, None)
        x = self._up(0, z, context, kept.append)
        kept.pop()  # the rows themselves
        return x

    def _up(self, scale: int, x: Tensor, context: Tensor | None, show: Show | None) -> Tensor:
        """The inverse of `_down`; whatever is on the way is shown as it lies in the whole image."""
        if scale < len(self.channels):
            on, noise = F.pixel_unshuffle(x, 2).chunk(2, 1)
            within = None if show is None else lambda on: show(F.pixel_shuffle(torch.cat([on, noise], 1), 2))
            x = torch.cat([self._up(scale + 1, on, context, within), noise], 1)
            for coupling in reversed(_steps(self.channels[scale])):
                x = coupling.inverse(x, context)
                if show is not None:
                    show(F.pixel_shuffle(x, 2))
            x = F.pixel_shuffle(x, 2)
        for coupling in reversed(_steps(self.pixels[scale])):
            x = coupling.inverse(x, context)
            if show is not None:
                show(x)
        return x


def _steps(steps: nn.Module) -> list[PixelCoupling | ChannelCoupling]:
    return list(cast(nn.ModuleList, steps))  # type: ignore[arg-type]
