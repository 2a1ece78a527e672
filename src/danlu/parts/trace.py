"""The trace of a field's Jacobian, tr(df / dx), beside the field itself.

    exact         sum_i e_i^T J e_i over the D unit vectors
    Hutchinson    v^T J v with E[v v^T] = 1: right on average, at the price of one product with J

A network that can only be differentiated is asked D times beside each other, or once, and pulls all vectors back
through one pass. Of fully connected layers more is known: with s_l the slopes of layer l's activation,

    J = V diag(s_L) W_L ... diag(s_1) W_1,    of two layers    tr J = s_2^T [W_2 * (W_1 V)^T] s_1

so an exact trace costs one product more than the field, whatever D is; the matrix in brackets is that of a whole
solving. Of more layers vectors are pushed forward.

References:
    Hutchinson, 1990, "A stochastic estimator of the trace of the influence matrix",
    https://doi.org/10.1080/03610919008812866
    Grathwohl et al., 2019, "FFJORD" (one vector for a whole solving), https://arxiv.org/abs/1810.01367
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from danlu.parts.network import Activation
from danlu.random import bits, mix32, normal, place_key

Trace: TypeAlias = Literal["exact", "hutchinson"]
"""How a trace is had."""
Probe: TypeAlias = Literal["rademacher", "gaussian"]
"""What vectors an estimate is made with: signs, or normal numbers."""

_ROWS = 1 << 14
"""Rows of one pass through a network, about, where several vectors go through it side by side."""
_PROBE = place_key("trace.probe")
_ROW = place_key("trace.row")


class Traced(ABC):
    """A field with its trace, for one solving.

    Attributes:
        weights: all that it depends on and that wants a gradient.
    """

    weights: Sequence[Tensor]

    @abstractmethod
    def __call__(
        self, x: Float[Tensor, "N D"], clock: Float[Tensor, " E"]
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, " N"]]:
        """The field and its trace, a time being told as these numbers."""


class ByVectors(Traced):
    """Of any network that can be differentiated, twice where a gradient is wanted.

    Args:
        network: x ``[N, D]`` and what else it is told ``[N, C]`` to the field.
        weights: what it depends on.
        context: what it is told behind the clock, ``[N, C]``.
        probes: v of each row, ``[N, D]``; None takes the unit vectors, which is exact.
    """

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        weights: Iterable[Tensor],
        context: Float[Tensor, "N C"] | None,
        probes: Float[Tensor, "N D"] | None,
    ) -> None:
        self.network, self.context, self.probes = network, context, probes
        self.weights = [weight for weight in weights if weight.requires_grad]

    def __call__(
        self, x: Float[Tensor, "N D"], clock: Float[Tensor, " E"]
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, " N"]]:
        """See `Traced`."""
        num, size = x.shape
        told = clock.expand(num, -1)
        told = told if self.context is None else torch.cat([told, self.context], 1)
        if self.probes is not None:
            return self._pulled(x, told, self.probes[None])
        vectors = torch.eye(size, dtype=x.dtype, device=x.device)[:, None].expand(size, num, size)
        passes = [self._pulled(x, told, some) for some in vectors.split(max(1, _ROWS // num))]
        return passes[0][0], torch.stack([trace for _, trace in passes]).sum(0)

    def _pulled(self, x: Tensor, told: Tensor, vectors: Float[Tensor, "P N D"]) -> tuple[Tensor, Tensor]:
        graph, (num, rows, size) = torch.is_grad_enabled(), vectors.shape
        with torch.enable_grad():
            wide = x.repeat(num, 1) if num > 1 else x
            wide = wide if graph and wide.requires_grad else wide.detach().requires_grad_()
            y = self.network(wide, told.repeat(num, 1) if num > 1 else told)
            (pulled,) = torch.autograd.grad(y, wide, vectors.reshape(num * rows, size), create_graph=graph)
        trace = (pulled.view(vectors.shape) * vectors).sum((0, 2))
        return (y if graph else y.detach())[:rows], trace


class OfLayers(Traced):
    """Of fully connected layers.

    Args:
        weights: of each layer in turn the matrix ``[out, in]`` and the bias ``[out]``; the first one's inputs are x,
            the clock and the context.
        activation: what comes between two layers.
        sizes: how many numbers x and the clock have.
        context: see `ByVectors`.
        probes: see `ByVectors`.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        activation: Activation,
        sizes: tuple[int, int],
        context: Float[Tensor, "N C"] | None,
        probes: Float[Tensor, "N D"] | None,
    ) -> None:
        first, bias, *rest = weights
        start, end = sizes[0], sum(sizes)  # slices, so that none of `weights` is made on the way to another
        of_x, of_clock, of_context = first[:, :start], first[:, start:end], first[:, end:]
        self._of_x, self._of_clock, self._act = of_x.T, of_clock, _SLOPES[activation]
        self._bias = bias if context is None else torch.addmm(bias, context, of_context.T)
        self._layers = [(w.T, b) for w, b in zip(rest[::2], rest[1::2], strict=True)]
        last = rest[-2] if rest else None
        self._core = self._left = self._right = None
        if last is None:
            self._core = of_x.diagonal().sum() if probes is None else ((probes @ of_x.T) * probes).sum(1)
        elif probes is not None:
            self._left, self._right = (probes @ of_x.T)[None], (probes @ last)[None]
        elif len(rest) == 2:
            self._core = (of_x * last.T).sum(1)
        elif len(rest) == 4:
            self._core = rest[0] * (of_x @ last).T
        else:
            self._left, self._right = of_x.T[:, None], last[:, None]
        own = [self._of_x, self._of_clock, self._bias, self._core, self._left, self._right]
        made = [*own, *(piece for layer in self._layers for piece in layer)]
        self.weights = [piece for piece in made if piece is not None and piece.requires_grad]

    def __call__(
        self, x: Float[Tensor, "N D"], clock: Float[Tensor, " E"]
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, " N"]]:
        """See `Traced`."""
        told = self._bias + self._of_clock @ clock if self._bias.dim() > 1 else self._bias.addmv(self._of_clock, clock)
        below, slopes = torch.addmm(told, x, self._of_x), []
        for matrix, bias in self._layers:
            below, slope = self._act(below)
            slopes.append(slope)
            below = torch.addmm(bias, below, matrix)
        return below, self._trace(slopes, len(x))

    def _trace(self, slopes: list[Tensor], num: int) -> Tensor:
        if self._left is not None and self._right is not None:
            pushed = slopes[0] * self._left
            for slope, (matrix, _) in zip(slopes[1:], self._layers, strict=False):
                pushed = (pushed @ matrix) * slope
            return (pushed * self._right).sum((0, 2))
        assert self._core is not None
        if not slopes:
            return self._core.expand(num)
        return slopes[0] @ self._core if len(slopes) == 1 else ((slopes[1] @ self._core) * slopes[0]).sum(1)


def probes_of(keys: Int[Tensor, " N"], num: int, probe: Probe) -> Float[Tensor, "N D"]:
    """Vectors with E[v v^T] = 1, functions of the keys.

    Args:
        keys: one a row.
        num: how many numbers a vector has.
        probe: how they are spread.
    """
    if probe == "gaussian":
        return normal(keys, _PROBE, num)
    return ((bits(keys, _PROBE, num) >> 31) | 1).float()


def keys_of(x: Float[Tensor, "N ..."]) -> Int[Tensor, " N"]:
    """A random key a row, from the row's own numbers, for rows that come without one."""
    numbers = x.detach().float().flatten(1).contiguous().view(torch.int32)
    places = bits(torch.zeros(1, dtype=torch.int32, device=x.device), _ROW, numbers.shape[1])
    return mix32(mix32(numbers ^ places).sum(1).to(torch.int32))


def _tanh(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x.tanh()
    return y, 1 - y * y


def _relu(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.relu(), (x > 0).to(x.dtype)


def _elu(x: Tensor) -> tuple[Tensor, Tensor]:
    y = F.elu(x)
    return y, y.clamp(max=0) + 1


def _silu(x: Tensor) -> tuple[Tensor, Tensor]:
    s = x.sigmoid()
    y = x * s
    return y, torch.addcmul(s, y, 1 - s)


def _gelu(x: Tensor) -> tuple[Tensor, Tensor]:
    below = (x * 0.5**0.5).erf().add(1).mul(0.5)
    return x * below, torch.addcmul(below, x, (x * x * -0.5).exp(), value=(2 * torch.pi) ** -0.5)


_SLOPES: dict[Activation, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "tanh": _tanh,
    "relu": _relu,
    "elu": _elu,
    "silu": _silu,
    "gelu": _gelu,
}
"""Each activation with its slope."""
