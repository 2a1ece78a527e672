"""Monotone curves made of rational-quadratic pieces, and the identity outside their bounds.

Between two knots, with w and h the piece's width and height, s = h / w, d0 and d1 the slopes at its ends, theta in
[0, 1] how far x has come in it, and q = theta (1 - theta),

    y = y0 + h (s theta^2 + d0 q) / (s + (d0 + d1 - 2 s) q)
    dy/dx = s^2 (d1 theta^2 + 2 s q + d0 (1 - theta)^2) / (s + (d0 + d1 - 2 s) q)^2

References:
    Gregory and Delbourgo, 1982, "Piecewise rational quadratic interpolation to monotonic data",
    https://doi.org/10.1093/imanum/2.2.123
    Durkan, Bekasov, Murray and Papamakarios, 2019, "Neural spline flows", https://arxiv.org/abs/1906.04032
"""

from __future__ import annotations

import functools
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from danlu.parts.bijection import Bijection
from danlu.parts.compiled import compiled

LEAST = 1e-3
"""The least share of the whole that a piece is wide and high, and the least slope at a knot."""
_ONE = math.log(math.expm1(1 - LEAST))
"""Where softplus and the least slope make a slope of 1."""


class RationalQuadratic(Bijection):
    """A spline of K pieces from -B to B, with slopes of 1 at both ends and outside.

    For each number it is told the K - 1 slopes between pieces, of which 0 makes 1, then K widths and K heights, as
    logits; so all zeros make the identity.

    Args:
        bins: K.
        bound: B.
    """

    def __init__(self, bins: int, bound: float) -> None:
        self.bins, self.bound, self.wants = bins, bound, 3 * bins - 1

    def forward(self, x: Tensor, said: Tensor, saved: list[Tensor] | None) -> tuple[Tensor, Tensor]:
        """See `Bijection`."""
        shares, k, piece = self._found(x, said, 0)
        y, log_slope = _risen(x.reshape(-1), piece, self.bound)
        if saved is not None:
            saved += (x, shares, k, piece)
        return y.view(x.shape), log_slope.view(x.shape)

    def backward(self, d_y: Tensor, d_log: Tensor, saved: list[Tensor]) -> tuple[Tensor, Tensor]:
        """See `Bijection`."""
        piece, k, shares, x = (saved.pop() for _ in range(4))
        d_x, d_piece = _fallen(x.reshape(-1), piece, d_y.reshape(-1), d_log.expand_as(x).reshape(-1), self.bound)
        d_said = _spread(d_piece, piece, shares, k, self.bound)
        return d_x.view(x.shape), d_said.view(self.wants * len(x), x.shape[1])

    def inverse(self, y: Tensor, said: Tensor) -> Tensor:
        """See `Bijection`."""
        _, _, piece = self._found(y, said, 1)
        return _sunk(y.reshape(-1), piece, self.bound).view(y.shape)

    def _found(self, x: Float[Tensor, "D N"], said: Float[Tensor, "P N"], axis: int) -> tuple[Tensor, Tensor, Tensor]:
        return _found(
            x.reshape(-1), said.view(self.wants, x.numel()), _sums(self.bins, x.dtype, x.device), self.bound, axis
        )


@functools.cache
def _sums(bins: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "K K"]:
    """What makes of values the sums of them up to each."""
    return torch.ones(bins, bins, dtype=dtype, device=device).tril()


def _scales(bins: int, bound: float) -> tuple[float, float]:
    """What shares are multiplied by to make sizes, and what is added."""
    return 2 * bound * (1 - LEAST * bins), 2 * bound * LEAST


@compiled
def _found(
    x: Float[Tensor, " M"], said: Float[Tensor, "P M"], sums: Float[Tensor, "K K"], bound: float, axis: int
) -> tuple[Float[Tensor, "2 K M"], Int[Tensor, " M"], Float[Tensor, "6 M"]]:
    """The piece in which each number lies.

    Args:
        x: numbers.
        said: what was said of each.
        sums: see `_sums`.
        bound: B.
        axis: whether the numbers are x (0) or y (1).

    Returns:
        Shares of widths and of heights; which piece; where it begins, x0 and y0, as distances from -B, its width and
        height w and h, and what makes the slopes at its ends, before softplus.
    """
    bins = len(sums)
    scale, least = _scales(bins, bound)
    shares = said[bins - 1 :].view(2, bins, len(x)).softmax(1)
    ends = torch.matmul(sums, shares)
    offsets = torch.arange(1, bins, dtype=x.dtype, device=x.device)[:, None] * (least / scale)
    k = (ends[axis, :-1] + offsets <= (x + bound) / scale).sum(0)
    here = k.expand(2, 1, -1)
    share, end = shares.gather(1, here)[:, 0], ends.gather(1, here)[:, 0]
    start = (end - share) * scale + k.to(x.dtype) * least
    slopes = F.pad(said[: bins - 1], (0, 0, 1, 1)).gather(0, torch.stack([k, k + 1]))
    return shares, k, torch.cat([start, share * scale + least, slopes + _ONE])


def _parts(piece: Float[Tensor, "6 M"]) -> tuple[Tensor, ...]:
    """x0, y0, w, h, s, and the slopes d0 and d1."""
    x0, y0, w, h = piece[:4].unbind()
    d0, d1 = (F.softplus(piece[4:]) + LEAST).unbind()
    return x0, y0, w, h, h / w, d0, d1


@compiled
def _risen(x: Float[Tensor, " M"], piece: Float[Tensor, "6 M"], bound: float) -> tuple[Tensor, Tensor]:
    """y, and log dy/dx."""
    x0, y0, w, h, s, d0, d1 = _parts(piece)
    inside = x.abs() <= bound
    theta = ((x + bound - x0) / w).clamp(0, 1)
    square, q = theta * theta, theta * (1 - theta)
    below = s + (d0 + d1 - 2 * s) * q
    y = y0 - bound + h * (s * square + d0 * q) / below
    slope = d1 * square + 2 * s * q + d0 * (1 - theta).square()
    log_slope = (slope * (s / below).square()).log()
    return torch.where(inside, y, x), log_slope * inside


@compiled
def _sunk(y: Float[Tensor, " M"], piece: Float[Tensor, "6 M"], bound: float) -> Float[Tensor, " M"]:
    """x: the root of a quadratic equation in theta, in the form that loses no digits."""
    x0, y0, w, h, s, d0, d1 = _parts(piece)
    risen = (y + bound - y0).clamp_min(0).minimum(h)
    bend = risen * (d0 + d1 - 2 * s)
    a, b, c = bend + h * (s - d0), h * d0 - bend, -s * risen
    theta = -2 * c / (b + (b.square() - 4 * a * c).clamp_min(0).sqrt())
    return torch.where(y.abs() <= bound, theta * w + x0 - bound, y)


@compiled
def _fallen(
    x: Float[Tensor, " M"], piece: Float[Tensor, "6 M"], d_y: Tensor, d_log: Tensor, bound: float
) -> tuple[Float[Tensor, " M"], Float[Tensor, "6 M"]]:
    """The gradients of x, and of a piece: of x0, y0, w, h, and of what makes the slopes."""
    x0, _, w, h, s, d0, d1 = _parts(piece)
    inside = x.abs() <= bound
    g, ell = d_y * inside, d_log * inside
    theta = ((x + bound - x0) / w).clamp(0, 1)
    rest, square = 1 - theta, theta * theta
    q = theta * rest
    turn, rest_square = 1 - 2 * q, rest * rest
    bend = d0 + d1 - 2 * s
    below = s + bend * q
    ratio, lift = (s * square + d0 * q) / below, g * h / below
    over = ell / (d1 * square + 2 * s * q + d0 * rest_square)
    down = lift * ratio + 2 * ell / below  # minus the gradient of `below`
    d_q = lift * d0 + 2 * s * over - down * bend  # theta^2 and (1 - theta)^2 held
    d_theta = d_q * (1 - 2 * theta) + 2 * ((lift * s + over * d1) * theta - over * d0 * rest)
    d_s = lift * square + 2 * (ell / s + over * q) - down * turn
    sink = down * q
    d_0, d_1 = lift * q + over * rest_square - sink, over * square - sink
    d_x = d_theta / w
    d_w, d_h = -(d_s * s + d_theta * theta) / w, g * ratio + d_s / w
    slopes = torch.sigmoid(piece[4:])
    d_piece = torch.stack([-d_x, g, d_w, d_h, d_0 * slopes[0], d_1 * slopes[1]])
    return torch.where(inside, d_x, d_y), d_piece


@compiled
def _spread(
    d_piece: Float[Tensor, "6 M"],
    piece: Float[Tensor, "6 M"],
    shares: Float[Tensor, "2 K M"],
    k: Int[Tensor, " M"],
    bound: float,
) -> Float[Tensor, "P M"]:
    """The gradient of what was said, from that of the piece: a piece begins where those before it end."""
    bins = shares.shape[1]
    scale, least = _scales(bins, bound)
    starts, sizes = d_piece[0:2] * scale, d_piece[2:4] * scale
    mean = (starts * (piece[0:2] - k.to(piece.dtype) * least) + sizes * (piece[2:4] - least)) / scale
    places = torch.arange(bins, device=k.device)[:, None]
    before, here = (places < k).to(shares.dtype), (places == k).to(shares.dtype)
    d_shares = torch.addcmul(torch.addcmul(-mean[:, None], before, starts[:, None]), here, sizes[:, None])
    d_slopes = torch.addcmul(here[1:] * d_piece[4], here[:-1], d_piece[5])
    return torch.cat([d_slopes, (d_shares * shares).flatten(0, 1)])
