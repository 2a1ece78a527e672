"""How one number is moved as others say: functions that can be inverted, and whose slope is positive.

    y = g(x; theta),    log dy/dx = s(x; theta)

Each is applied to every element for itself; theta is what a network said, with the backward written out. Rows stand
side by side, ``[D, N]``.
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
        wants: how many numbers it is told for each that it moves, P / D; each is a block of D rows of what is said.
    """

    wants: int

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "D N"], said: Float[Tensor, "P N"], saved: list[Tensor] | None
    ) -> tuple[Float[Tensor, "D N"], Float[Tensor, "D N"] | None]:
        """What x becomes, and the log of the slope there; None where that is always 0.

        Args:
            x: what is moved.
            said: what the network said; it may be overwritten.
            saved: where what `backward` needs is put; None keeps nothing.
        """

    @abstractmethod
    def backward(
        self, d_y: Float[Tensor, "D N"], d_log: Float[Tensor, " N"], saved: list[Tensor]
    ) -> tuple[Float[Tensor, "D N"], Float[Tensor, "P N"]]:
        """The gradients of x and of what the network said.

        Args:
            d_y: the gradient of what x becomes.
            d_log: the gradient of the log of the slope, the same for all elements of a row.
            saved: what `forward` has put there last, which is taken off.
        """

    @abstractmethod
    def inverse(self, y: Float[Tensor, "D N"], said: Float[Tensor, "P N"]) -> Float[Tensor, "D N"]:
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
        """s, of whatever shape a has."""
        return a / torch.rsub(a.abs(), 1.0, alpha=-self.scale)

    def forward(self, x: Tensor, said: Tensor, saved: list[Tensor] | None) -> tuple[Tensor, Tensor]:
        """See `Bijection`."""
        a, t = said.chunk(2)
        over = torch.rsub(a.abs(), 1.0, alpha=-self.scale)  # 1 + |a| / log B
        s = a / over
        slope = s.exp()
        if saved is not None:
            saved += (x, over, slope)
        return torch.addcmul(t, x, slope), s

    def backward(self, d_y: Tensor, d_log: Tensor, saved: list[Tensor]) -> tuple[Tensor, Tensor]:
        """See `Bijection`; ds/da = 1 / (1 + |a| / log B)^2."""
        slope, over, x = saved.pop(), saved.pop(), saved.pop()
        d_x = slope * d_y
        d_a = torch.addcmul(d_log, d_x, x).div_(over).div_(over)
        return d_x, torch.cat([d_a, d_y])

    def inverse(self, y: Tensor, said: Tensor) -> Tensor:
        """See `Bijection`."""
        a, t = said.chunk(2)
        falls = a / torch.rsub(a.abs(), -1.0, alpha=self.scale)  # -s
        return (y - t) * falls.exp()
