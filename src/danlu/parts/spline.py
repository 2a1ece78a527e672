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

    For each number it is told K widths and K heights, as logits, and the K - 1 slopes between pieces, of which 0 makes
    1; so all zeros make the identity.

    Args:
        bins: K.
        bound: B.
    """

    def __init__(self, bins: int, bound: float) -> None:
        self.bins, self.bound, self.wants = bins, bound, 3 * bins - 1

    def forward(self, x: Tensor, said: Tensor, saved: list[Tensor] | None) -> tuple[Tensor, Tensor]:
        """See `Bijection`."""
        theta = said.view(*x.shape, self.wants)
        shares, k, piece = _found(x, theta, self.bins, self.bound, 0)
        y, log_slope = _risen(x, piece, self.bound)
        if saved is not None:
            saved += (x, shares, k, piece)
        return y, log_slope

    def backward(self, d_y: Tensor, d_log: Tensor, saved: list[Tensor]) -> tuple[Tensor, Tensor]:
        """See `Bijection`."""
        piece, k, shares, x = (saved.pop() for _ in range(4))
        d_x, d_piece = _fallen(x, piece, d_y, d_log, self.bound)
        d_said = _spread(d_piece, shares, k, self.bound)
        return d_x, d_said.flatten(1)

    def inverse(self, y: Tensor, said: Tensor) -> Tensor:
        """See `Bijection`."""
        _, _, piece = _found(y, said.view(*y.shape, self.wants), self.bins, self.bound, 1)
        return _sunk(y, piece, self.bound)


@compiled
def _found(
    x: Float[Tensor, "N D"], theta: Float[Tensor, "N D P"], bins: int, bound: float, axis: int
) -> tuple[Float[Tensor, "N D 2 K"], Int[Tensor, "N D"], Float[Tensor, "N D 6"]]:
    """The piece in which each number lies.

    Args:
        x: numbers.
        theta: what was said of each.
        bins: K.
        bound: B.
        axis: whether the numbers are x (0) or y (1).

    Returns:
        Shares of widths and of heights; which piece; where it begins, x0 and y0, as distances from -B, its width and
        height w and h, and what makes the slopes at its ends, before softplus.
    """
    shares = theta[..., : 2 * bins].unflatten(-1, (2, bins)).softmax(-1)
    sizes = shares * (2 * bound * (1 - LEAST * bins)) + 2 * bound * LEAST
    ends = sizes.cumsum(-1)
    k = (x[..., None] + bound >= ends[..., axis, :-1]).sum(-1)
    here = k[..., None, None].expand(*k.shape, 2, 1)
    size, end = sizes.gather(-1, here)[..., 0], ends.gather(-1, here)[..., 0]
    slopes = F.pad(theta[..., 2 * bins :], (1, 1)).gather(-1, torch.stack([k, k + 1], -1))
    return shares, k, torch.cat([end - size, size, slopes + _ONE], -1)


def _parts(piece: Tensor) -> tuple[Tensor, ...]:
    """x0, y0, w, h, s, and the slopes d0 and d1."""
    x0, y0, w, h = piece[..., :4].unbind(-1)
    d0, d1 = (F.softplus(piece[..., 4:]) + LEAST).unbind(-1)
    return x0, y0, w, h, h / w, d0, d1


@compiled
def _risen(x: Float[Tensor, "N D"], piece: Float[Tensor, "N D 6"], bound: float) -> tuple[Tensor, Tensor]:
    """y, and log dy/dx."""
    x0, y0, w, h, s, d0, d1 = _parts(piece)
    inside = x.abs() <= bound
    theta = ((x + (bound - x0)) / w).clamp(0, 1)
    square, q = theta * theta, theta * (1 - theta)
    below = s + (d0 + d1 - 2 * s) * q
    y = y0 - bound + h * (s * square + d0 * q) / below
    slope = d1 * square + 2 * s * q + d0 * (1 - theta).square()
    log_slope = (slope * (s / below).square()).log()
    return torch.where(inside, y, x), log_slope * inside


@compiled
def _sunk(y: Float[Tensor, "N D"], piece: Float[Tensor, "N D 6"], bound: float) -> Tensor:
    """x: the root of a quadratic equation in theta, in the form that loses no digits."""
    x0, y0, w, h, s, d0, d1 = _parts(piece)
    risen = (y + bound - y0).clamp_min(0).minimum(h)
    bend = risen * (d0 + d1 - 2 * s)
    a, b, c = bend + h * (s - d0), h * d0 - bend, -s * risen
    theta = -2 * c / (b + (b.square() - 4 * a * c).clamp_min(0).sqrt())
    return torch.where(y.abs() <= bound, theta * w + (x0 - bound), y)


@compiled
def _fallen(
    x: Float[Tensor, "N D"], piece: Float[Tensor, "N D 6"], d_y: Tensor, d_log: Float[Tensor, "N 1"], bound: float
) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D 6"]]:
    """The gradients of x, and of a piece: of x0, y0, w, h, and of what makes the slopes."""
    x0, _, w, h, s, d0, d1 = _parts(piece)
    inside = x.abs() <= bound
    g, ell = d_y * inside, d_log * inside
    theta = ((x + (bound - x0)) / w).clamp(0, 1)
    rest, square = 1 - theta, theta * theta
    q, turn = theta * rest, 1 - 2 * theta
    bend = d0 + d1 - 2 * s
    above, below = s * square + d0 * q, s + bend * q
    slope = d1 * square + 2 * s * q + d0 * rest.square()
    ratio, lift = above / below, g * h / below
    twice, over = 2 * ell / below, ell / slope
    d_q = lift * (d0 - ratio * bend) + 2 * s * over - twice * bend  # with theta^2 and (1 - theta)^2 held
    d_square = lift * s + over * d1
    d_theta = d_q * turn + 2 * (d_square * theta - over * d0 * rest)
    d_s = lift * (square - ratio * (1 - 2 * q)) + 2 * (ell / s + over * q) - twice * (1 - 2 * q)
    d_0 = lift * q * (1 - ratio) + over * rest.square() - twice * q
    d_1 = over * square - lift * ratio * q - twice * q
    d_x = d_theta / w
    d_w = -(d_s * s + d_theta * theta) / w
    d_h = g * ratio + d_s / w
    slopes = torch.sigmoid(piece[..., 4:])
    d_piece = torch.stack([-d_x, g, d_w, d_h, d_0 * slopes[..., 0], d_1 * slopes[..., 1]], -1)
    return torch.where(inside, d_x, d_y), d_piece


@compiled
def _spread(
    d_piece: Float[Tensor, "N D 6"], shares: Float[Tensor, "N D 2 K"], k: Int[Tensor, "N D"], bound: float
) -> Float[Tensor, "N D P"]:
    """The gradient of what was said, from that of the piece: a piece begins where those before it end."""
    bins = shares.shape[-1]
    places = torch.arange(bins, device=k.device)
    before, here = places < k[..., None], places == k[..., None]
    starts, sizes = d_piece[..., 0:2, None], d_piece[..., 2:4, None]
    d_sizes = torch.where(before[..., None, :], starts, sizes * here[..., None, :])
    d_shares = d_sizes * (2 * bound * (1 - LEAST * bins))
    d_logits = shares * (d_shares - (shares * d_shares).sum(-1, keepdim=True))
    left, right = d_piece[..., 4:5], d_piece[..., 5:6]
    d_slopes = left * here[..., 1:] + right * here[..., :-1]
    return torch.cat([d_logits.flatten(-2), d_slopes], -1)
