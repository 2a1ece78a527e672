"""Coupling: one half of a row says how the other is moved, by turns.

    (a, b) -> (g(b; m(a, c)), a)

The triangular Jacobian's determinant is the product of the slopes of g, and the inverse asks the same network. The
halves are every other number of a row, as in NICE, so neighbouring pixels lie in different ones; they are two tensors
from the first step to the last.

References:
    Dinh et al., 2014, "NICE: non-linear independent components estimation", https://arxiv.org/abs/1410.8516
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from danlu.density import Space
from danlu.parts.bijection import Bijection
from danlu.parts.conditioner import Conditioners, Layers
from danlu.parts.flow import Chain, Saved
from danlu.parts.network import MLP
from danlu.parts.order import Mixing, of_halves
from danlu.parts.prior import Prior
from danlu.random import fold


class Coupling(Chain):
    """Steps of coupling, each half moved by turns.

    Args:
        space: what a row is, of two numbers or more.
        bijection: how a number is moved.
        num: how many steps.
        network: the networks' hidden layers.
        mixing: what is done to the order of numbers between steps.
        seed: weights and orders follow from it.
        prior: see `Flow`.

    Attributes:
        conditioners: the networks: all steps', or, where a row's halves are of two sizes, those of even steps and those
            of odd ones.
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
        sizes = (space.size - space.size // 2, space.size // 2)
        kinds = 1 if sizes[0] == sizes[1] else 2
        self.conditioners = torch.nn.ModuleList(
            Conditioners(
                len(range(i, num, kinds)),
                sizes[i] + space.context,
                sizes[1 - i] * bijection.wants,
                network,
                fold(seed, "coupling", i),
            )
            for i in range(min(kinds, num))
        )
        self.orders = of_halves(mixing, space.size, num, seed)

    def weights(self) -> Sequence[Tensor]:
        """See `Chain`."""
        return [tensor for stack in self.conditioners for tensor in stack.weights()]

    def _steps(self, weights: Sequence[Tensor]) -> list[Layers]:
        """Weights, or something in their shape, step by step."""
        each = len(weights) // len(self.conditioners)
        kinds = [stack.layers(weights[i * each :][:each]) for i, stack in enumerate(self.conditioners)]
        return [kinds[k % len(kinds)][k // len(kinds)] for k in range(self.num)]

    def through(
        self, x: Float[Tensor, "N D"], context: Tensor | None, weights: Sequence[Tensor], saved: Saved | None
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, " N"]]:
        """See `Chain`."""
        ask, bijection, orders, logs = self.conditioners[0].ask, self.bijection, self.orders, []
        a, b = self._halves(0, orders(0, x))
        for k, layers in enumerate(self._steps(weights)):
            if k and not orders.stays[k]:
                a, b = self._halves(k, orders(k, torch.cat([a, b], 1)))
            given = a if context is None else torch.cat([a, context], 1)
            moved, log_slope = bijection.forward(b, ask(layers, given, saved), saved)
            if log_slope is not None:
                logs.append(log_slope)
            a, b = moved, a
        log_det = torch.cat(logs, 1).sum(1) if logs else x.new_zeros(len(x))
        return orders(self.num, torch.cat([a, b], 1)), log_det

    def back(
        self,
        d_z: Float[Tensor, "N D"],
        d_log_det: Float[Tensor, " N"],
        context: Tensor | None,
        weights: Sequence[Tensor],
        saved: Saved,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
        """See `Chain`."""
        gradients = [torch.empty_like(w) for w in weights]
        pull, orders, d_log = self.conditioners[0].pull, self.orders, d_log_det[:, None]
        d_context = torch.zeros_like(context) if wanted[1] and context is not None else None
        steps, given = self._steps(weights), self._steps(gradients)
        d_moved, d_a = self._halves(self.num, orders.backward(self.num, d_z))
        for k in range(self.num - 1, -1, -1):
            d_b, d_said = self.bijection.backward(d_moved, d_log, saved)
            d = pull(steps[k], given[k], d_said, saved)
            matrix = steps[k][0][0]
            if k or wanted[0]:
                d_a = torch.addmm(d_a, d, matrix[: d_a.shape[1]].T)
            if d_context is not None:
                d_context.addmm_(d, matrix[d_a.shape[1] :].T)
            if k and not orders.stays[k]:
                d_a, d_b = self._halves(k, orders.backward(k, torch.cat([d_a, d_b], 1)))
            d_moved, d_a = d_a, d_b
        d_x = orders.backward(0, torch.cat([d_moved, d_a], 1)) if wanted[0] else None
        return d_x, d_context, gradients

    def _halves(self, k: int, x: Float[Tensor, "N D"]) -> tuple[Tensor, Tensor]:
        """A row as the k-th step takes it, or as the one before has left it, in its two halves."""
        first = (self.space.size + 1 - k % 2) // 2
        return x[:, :first], x[:, first:]

    def stages(self, z: Float[Tensor, "N ..."], context: Tensor | None, kept: list[Tensor] | None) -> Tensor:
        """See `Flow`."""
        steps, ask, orders = self._steps(self.weights()), self.conditioners[0].ask, self.orders
        moved, a = self._halves(self.num, orders.backward(self.num, z if z.dim() == 2 else z.flatten(1)))
        for k in range(self.num - 1, -1, -1):
            b = self.bijection.inverse(moved, ask(steps[k], a if context is None else torch.cat([a, context], 1)))
            if k and kept is not None:
                kept.append(orders.home(k, torch.cat([a, b], 1)).view_as(z))
            if k and not orders.stays[k]:
                a, b = self._halves(k, orders.backward(k, torch.cat([a, b], 1)))
            moved, a = a, b
        return orders.backward(0, torch.cat([moved, a], 1)).view_as(z)
