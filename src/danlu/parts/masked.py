"""Masked autoregression: every number of a row is moved as those before it say.

    z_i = g(x_i; m_i(x_1 .. x_{i-1}, c))

One network says all m_i at once: each of its hidden units has a degree, and sees what comes no later than that. From
rows to noise that is one pass a step. The other way numbers come one after another; units are sorted by degree, so each
is computed once, when what it sees is there, and all D numbers together cost the products of one pass. In which order
numbers come is a matter of the masks, so rows stay as they are.

References:
    Germain et al., 2015, "MADE: masked autoencoder for distribution estimation", https://arxiv.org/abs/1502.03509
    Papamakarios, Pavlakou and Murray, 2017, "Masked autoregressive flow for density estimation",
    https://arxiv.org/abs/1705.07057
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, repeat

import torch
from jaxtyping import Bool, Float, Int
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


def masks(order: Int[Tensor, "K D"], hidden: Sequence[int], context: int, wants: int) -> list[Bool[Tensor, "k o i"]]:
    """Of each layer of K networks, which weights there are, ``[K, out, in]``, or ``[1, out, in]`` where all have them.

    Their outputs are `wants` blocks of one for each number.

    Args:
        order: which number of a row comes when; numbers come first among the inputs.
        hidden: width of each hidden layer.
        context: inputs behind them, which all units see.
        wants: blocks of outputs.
    """
    num, size = order.shape
    lowest = 0 if context else 1  # a unit that sees nothing would be a bias
    before = order.argsort(1)  # how many numbers come before each
    levels = [torch.cat([before + 1, before.new_zeros(num, context)], 1)]
    levels += [degrees(size, units, lowest=lowest).to(order.device)[None] for units in hidden]
    levels.append(before.repeat(1, wants))
    return [a[:, None, :] <= b[:, :, None] for a, b in pairwise(levels)]


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
        conditioners: the networks; they take and give numbers as they stand in a row.
        order: which number comes when, ``[K, D]``; saved with the weights where it was drawn.
    """

    order: Tensor

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
        size, self._hidden, self._drawn = space.size, network.hidden, mixing == "shuffle"
        self.register_buffer("order", of_wholes(mixing, size, num, seed), persistent=self._drawn)
        self.conditioners = Conditioners(
            num, size + space.context, size * bijection.wants, network, fold(seed, "masked"), self._masks()
        )
        self._followed = self.order._version
        lowest = 0 if space.context else 1
        steps = torch.arange(size + 1)
        self._seen = [
            torch.searchsorted(degrees(size, units, lowest=lowest), steps).tolist() for units in network.hidden
        ]

    @property
    def to_decode(self) -> int:
        """See `Flow`: a number at a time."""
        return self.space.size

    def _masks(self) -> list[Tensor]:
        return masks(self.order, self._hidden, self.space.context, self.bijection.wants)

    def weights(self) -> Sequence[Tensor]:
        """See `Chain`."""
        if self._drawn and self.order._version != self._followed:  # another order was loaded
            self.conditioners.set_masks(self._masks())
            self._followed = self.order._version
        return self.conditioners.weights()

    def through(
        self, x: Float[Tensor, "D N"], context: Tensor | None, weights: Sequence[Tensor], saved: Saved | None
    ) -> tuple[Float[Tensor, "D N"], Float[Tensor, " N"]]:
        """See `Chain`."""
        ask, bijection, logs = self.conditioners.ask, self.bijection, []
        masked = self.conditioners.masked(weights)
        if saved is not None:
            saved += masked
        for layers in self.conditioners.layers(masked):
            given = x if context is None else torch.cat([x, context])
            x, log_slope = bijection.forward(x, ask(layers, given, saved), saved)
            if log_slope is not None:
                logs.append(log_slope)
        return x, torch.cat(logs).sum(0) if logs else x.new_zeros(x.shape[1])

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
        size, d_x = self.space.size, d_z
        d_context = torch.zeros_like(context) if wanted[1] and context is not None else None
        steps, given = (self.conditioners.layers(each) for each in (saved[: len(weights)], gradients))
        for k in range(self.num - 1, -1, -1):
            d_x, d_said = self.bijection.backward(d_x, d_log_det, saved)
            d = self.conditioners.pull(steps[k], given[k], d_said, saved)
            matrix = steps[k][0][0]
            if k or wanted[0]:
                d_x = matrix_added(d_x, matrix[:, :size].T, d)
            if d_context is not None:
                d_context.addmm_(matrix[:, size:].T, d)
        self.conditioners.mask(gradients)
        return d_x if wanted[0] else None, d_context, gradients

    @torch.no_grad()
    def undone(self, z: Float[Tensor, "D N"], context: Tensor | None, kept: list[Tensor] | None) -> Tensor:
        """See `Chain`; no gradient goes through."""
        steps = self.conditioners.layers(self.conditioners.masked(self.weights()))
        together = max(1, _HELD // max(1, sum(self._hidden)))
        x, back = z, self.order.argsort(1)
        for k in range(self.num - 1, -1, -1):
            layers = self._in_order(steps[k], self.order[k])
            told = repeat(None) if context is None else context.split(together, 1)
            each = zip(x.index_select(0, self.order[k]).split(together, 1), told, strict=False)
            made = [self._undone(layers, some, c) for some, c in each]
            x = (made[0] if len(made) == 1 else torch.cat(made, 1)).index_select(0, back[k])
            if k and kept is not None:
                kept.append(x)
        return x

    def _in_order(self, layers: Layers, order: Int[Tensor, " D"]) -> Layers:
        """A network that takes and gives numbers in the order in which they come."""
        size, made = self.space.size, list(layers)
        behind = torch.arange(size, layers[0][0].shape[1], device=order.device)
        blocks = size * torch.arange(self.bijection.wants, device=order.device)
        made[0] = (made[0][0].index_select(1, torch.cat([order, behind])), made[0][1])
        outputs = (blocks[:, None] + order).flatten()
        made[-1] = (made[-1][0].index_select(0, outputs), made[-1][1].index_select(0, outputs))
        return made

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
