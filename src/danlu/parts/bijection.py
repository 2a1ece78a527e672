"""How one number is moved as others say: functions that can be inverted, and whose slope is positive.

    y = g(x; theta),    log dy/dx = s(x; theta)

Each is applied to every element for itself; theta is what a network said, with the backward written out.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor


class Bijection(ABC):
    """A function of one number that others choose.

    Attributes:
        wants: how many numbers it is told for each that it moves.
    """

    wants: int

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "N D"], said: Float[Tensor, "N P"], saved: list[Tensor] | None
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D"] | None]:
        """What x becomes, and the log of the slope there; None where that is always 0.

        Args:
            x: what is moved.
            said: what the network said, `wants` numbers for each; it may be overwritten.
            saved: where what `backward` needs is put; None keeps nothing.
        """

    @abstractmethod
    def backward(
        self, d_y: Float[Tensor, "N D"], d_log: Float[Tensor, "N 1"], saved: list[Tensor]
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N P"]]:
        """The gradients of x and of what the network said.

        Args:
            d_y: the gradient of what x becomes.
            d_log: the gradient of the log of the slope, the same for all elements of a row.
            saved: what `forward` has put there last, which is taken off.
        """

    @abstractmethod
    def inverse(self, y: Float[Tensor, "N D"], said: Float[Tensor, "N P"]) -> Float[Tensor, "N D"]:
        """What becomes y; gradients go through."""


class Additive(Bijection):
    """y = x + t, which leaves volumes as they are.

    References:
        Dinh et al., 2014, "NICE: non-linear independent components estimation", https://arxiv.org/abs/1410.8516
    """

    wants = 1

    def forward(self, x: Tensor, said: Tensor, saved: list[Tensor] | None) -> tuple[Tensor, None]:
        """See `Bijection`."""
        return said.add_(x), None

    def backward(self, d_y: Tensor, d_log: Tensor, saved: list[Tensor]) -> tuple[Tensor, Tensor]:
        """See `Bijection`."""
        return d_y, d_y

    def inverse(self, y: Tensor, said: Tensor) -> Tensor:
        """See `Bijection`."""
        return y - said


class Affine(Bijection):
    """y = exp(s) x + t,   s = a / (1 + |a| / log B), so that the slope lies between 1 / B and B.

    The network says all a first, then all t.

    References:
        Dinh, Sohl-Dickstein and Bengio, 2016, "Density estimation using real NVP", https://arxiv.org/abs/1605.08803

    Args:
        largest: B, above 1.
    """

    wants = 2

    def __init__(self, largest: float) -> None:
        self.scale = 1 / math.log(largest)

    def log_slope(self, a: Tensor) -> Tensor:
        """s."""
        return a / (a.abs() * self.scale + 1)

    def forward(self, x: Tensor, said: Tensor, saved: list[Tensor] | None) -> tuple[Tensor, Tensor]:
        """See `Bijection`."""
        a, t = said.chunk(2, 1)
        s = self.log_slope(a)
        if saved is not None:
            saved += (x, s)
        return t.addcmul(x, s.exp()), s

    def backward(self, d_y: Tensor, d_log: Tensor, saved: list[Tensor]) -> tuple[Tensor, Tensor]:
        """See `Bijection`; ds/da = (1 - |s| / log B)^2."""
        s, x = saved.pop(), saved.pop()
        d_x = d_y * s.exp()
        d_said = d_y.new_empty(len(d_y), 2 * d_y.shape[1])
        d_a, d_t = d_said.chunk(2, 1)
        d_t.copy_(d_y)
        torch.addcmul(d_log, d_x, x, out=d_a)
        d_a.mul_(s.abs().mul_(-self.scale).add_(1).square_())
        return d_x, d_said

    def inverse(self, y: Tensor, said: Tensor) -> Tensor:
        """See `Bijection`."""
        a, t = said.chunk(2, 1)
        return (y - t) * (-self.log_slope(a)).exp()
