"""Masked autoregression: every number of a row is moved as those before it say.

    z_i = g(x_i; m_i(x_1 .. x_{i-1}, c))

One network says all m_i at once: each of its hidden units has a degree, and sees what comes no later than that. From
rows to noise that is one pass a step. The other way numbers come one after another; units are sorted by degree, so each
is computed once, when what it sees is there, and all D numbers together cost the products of one pass.

References:
    Germain et al., 2015, "MADE: masked autoencoder for distribution estimation", https://arxiv.org/abs/1502.03509
    Papamakarios, Pavlakou and Murray, 2017, "Masked autoregressive flow for density estimation",
    https://arxiv.org/abs/1705.07057
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

import torch
from jaxtyping import Float, Int
from torch import Tensor

from danlu.density import Space
from danlu.parts.bijection import Bijection
from danlu.parts.conditioner import Conditioners, Layers
from danlu.parts.flow import Chain, Saved
from danlu.parts.network import MLP
from danlu.parts.order import Mixing, of_wholes
from danlu.parts.prior import Prior
from danlu.parts.products import matrix_added
from danlu.random import fold


def degrees(size: int, units: int, *, lowest: int) -> Int[Tensor, " units"]:
    """How many numbers of a row each unit of a hidden layer sees, from `lowest` to size - 1, spread evenly and sorted.

    Example:
        >>> degrees(4, 6, lowest=1).tolist()
        [1, 1, 2, 2, 3, 3]
    """
    return lowest + torch.arange(units) * (size - lowest) // units


def masks(size: int, hidden: Sequence[int], context: int, wants: int) -> list[Tensor]:
    """Of each layer of a network, which weights there are, ``[out, in]``.

    Its outputs are `wants` blocks of one for each number.

    Args:
        size: numbers of a row; they come first among the inputs.
        hidden: width of each hidden layer.
        context: inputs behind them, which all units see.
        wants: blocks of outputs.
    """
    lowest = 0 if context else 1  # a unit that sees nothing would be a bias
    levels = [torch.cat([torch.arange(1, size + 1), torch.zeros(context, dtype=torch.int64)])]
    levels += [degrees(size, units, lowest=lowest) for units in hidden]
    outputs = torch.arange(size).repeat(wants)  # the i-th sees one less than i
    return [a <= b[:, None] for a, b in zip(levels, (*levels[1:], outputs), strict=True)]


class Masked(Chain):
    """Steps of masked autoregression, the order of numbers another in each.

    Args:
        space: what a row is, of two numbers or more.
        bijection: how a number is moved.
        num: how many steps.
        network: the networks' hidden layers.
        mixing: what is done to the order of numbers between steps.
        seed: weights and orders follow from it.
        prior: see `Flow`.

    Attributes:
        conditioners: the networks.
    """

    def __init__(
        self,
        space: Space,
        bijection: Bijection,
        num: int,
        network: MLP,
        mixing: Mixing,
        seed: int,
        prior: Prior | None = None,
    ) -> None:
        super().__init__(space, prior)
        self.bijection, self.num = bijection, num
        size = space.size
        which = masks(size, network.hidden, space.context, bijection.wants)
        self.conditioners = Conditioners(
            num, size + space.context, size * bijection.wants, network, fold(seed, "masked"), which
        )
        self.orders = of_wholes(mixing, size, num, seed)
        lowest = 0 if space.context else 1
        self._units, steps = sum(network.hidden), torch.arange(size + 1)
        self._seen = [
            torch.searchsorted(degrees(size, units, lowest=lowest), steps).tolist() for units in network.hidden
        ]

    @property
    def to_decode(self) -> int:
        """See `Flow`: a number at a time."""
        return self.space.size

    def weights(self) -> Sequence[Tensor]:
        """See `Chain`."""
        return self.conditioners.weights()

    def through(
        self, x: Float[Tensor, "D N"], context: Tensor | None, weights: Sequence[Tensor], saved: Saved | None
    ) -> tuple[Float[Tensor, "D N"], Float[Tensor, " N"]]:
        """See `Chain`."""
        ask, bijection, orders, logs = self.conditioners.ask, self.bijection, self.orders.forward, []
        masked = self.conditioners.masked(weights)
        if saved is not None:
            saved += masked
        for k, layers in enumerate(self.conditioners.layers(masked)):
            x = orders(k, x)
            given = x if context is None else torch.cat([x, context])
            x, log_slope = bijection.forward(x, ask(layers, given, saved), saved)
            if log_slope is not None:
                logs.append(log_slope)
        return orders(self.num, x), torch.cat(logs).sum(0) if logs else x.new_zeros(x.shape[1])

    def back(
        self,
        d_z: Float[Tensor, "D N"],
        d_log_det: Float[Tensor, " N"],
        context: Tensor | None,
        weights: Sequence[Tensor],
        saved: Saved,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
        """See `Chain`."""
        gradients = [torch.empty_like(w) for w in weights]
        size, orders = self.space.size, self.orders
        d_context = torch.zeros_like(context) if wanted[1] and context is not None else None
        steps, given = (self.conditioners.layers(each) for each in (saved[: len(weights)], gradients))
        d_x = orders.backward(self.num, d_z)
        for k in range(self.num - 1, -1, -1):
            d_x, d_said = self.bijection.backward(d_x, d_log_det, saved)
            d = self.conditioners.pull(steps[k], given[k], d_said, saved)
            matrix = steps[k][0][0]
            if k or wanted[0]:
                d_x = matrix_added(d_x, matrix[:, :size].T, d)
            if d_context is not None:
                d_context.addmm_(matrix[:, size:].T, d)
            d_x = orders.backward(k, d_x)
        self.conditioners.mask(gradients)
        return d_x if wanted[0] else None, d_context, gradients

    @torch.no_grad()
    def undone(self, z: Float[Tensor, "D N"], context: Tensor | None, kept: list[Tensor] | None) -> Tensor:
        """See `Chain`; no gradient goes through."""
        steps = self.conditioners.layers(self.conditioners.masked(self.weights()))
        together = max(1, _HELD // max(1, self._units))
        x = self.orders.backward(self.num, z)
        for k in range(self.num - 1, -1, -1):
            if x.shape[1] <= together:
                x = self._undone(steps[k], x, context)
            else:
                told = repeat(None) if context is None else context.split(together, 1)
                each = zip(x.split(together, 1), told, strict=False)
                x = torch.cat([self._undone(steps[k], some, c) for some, c in each], 1)
            if k and kept is not None:
                kept.append(self.orders.home(k, x))
            x = self.orders.backward(k, x)
        return x

    def _undone(self, layers: Layers, z: Float[Tensor, "D N"], context: Tensor | None) -> Float[Tensor, "D N"]:
        """The inverse of a step, number by number; what is new of a layer is in one piece, as units are sorted."""
        size, act, invert = self.space.size, self.conditioners.activation, self.bijection.inverse
        made = torch.empty_like(z)
        xs, zs = made.split(1), z.split(1)
        *hidden, (w, b) = layers
        states = [z.new_empty(len(bias), z.shape[1]) for _, bias in hidden]
        if context is not None:
            first, bias = layers[0]
            bias = torch.addmm(bias, first[:, size:], context)
            b = b if hidden else bias
            hidden = [(first, bias), *hidden[1:]] if hidden else []
        each = list(zip(hidden, states, self._seen, strict=True))
        last, biases = (
            w.view(self.bijection.wants, size, -1).unbind(1),
            b.view(self.bijection.wants, size, -1).unbind(1),
        )
        for i in range(size):
            below, known = made, i
            for (matrix, bias), units, seen in each:
                low, high = seen[i], seen[i + 1]
                if low < high:
                    new = units[low:high]
                    torch.addmm(bias[low:high], matrix[low:high, :known], below[:known], out=new)
                    act.in_place(new)
                below, known = units, high
            said = (
                torch.addmm(biases[i], last[i][:, :known], below[:known]) if known else biases[i].expand(-1, z.shape[1])
            )
            xs[i].copy_(invert(zs[i], said))
        return made


_HELD = 1 << 21
"""Numbers of hidden units that are held at once while rows are made: more are slower to come by, and fewer rows cost as
many calls."""
