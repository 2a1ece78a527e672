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
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from danlu.density import Space
from danlu.parts.bijection import Bijection
from danlu.parts.conditioner import Conditioners, Layers
from danlu.parts.flow import Chain, Saved
from danlu.parts.network import MLP
from danlu.parts.order import Mixing, of_halves
from danlu.parts.prior import Prior
from danlu.parts.products import matrix_added
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
        scaled: whether each number is scaled behind the last step, by what is the same for all rows.

    Attributes:
        conditioners: the networks: all steps', or, where a row's halves are of two sizes, those of even steps and those
            of odd ones.
        log_scale: the logs of these scales, ``[D]``; 0 at the start.
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
        *,
        scaled: bool = False,
    ) -> None:
        super().__init__(space, prior)
        self.bijection, self.num = bijection, num
        sizes = (space.size - space.size // 2, space.size // 2)
        kinds = 1 if sizes[0] == sizes[1] else 2
        self.conditioners = nn.ModuleList(
            Conditioners(
                len(range(i, num, kinds)),
                sizes[i] + space.context,
                sizes[1 - i] * bijection.wants,
                network,
                fold(seed, "coupling", i),
            )
            for i in range(min(kinds, num))
        )
        self.scaled = scaled
        if scaled:
            self.log_scale = nn.Parameter(torch.zeros(space.size))
        self._stacks = tuple(cast(Sequence[Conditioners], self.conditioners))
        self.orders = of_halves(mixing, space.size, num, seed)

    def weights(self) -> Sequence[Tensor]:
        """See `Chain`."""
        networks = [tensor for stack in self._stacks for tensor in stack.weights()]
        return [*networks, self.log_scale] if self.scaled else networks

    def _steps(self, weights: Sequence[Tensor], *, places: bool = False) -> list[Layers]:
        """Weights step by step; or places for their gradients."""
        kinds, depth = [], 2 * self._stacks[0].depth
        for i, stack in enumerate(self._stacks):
            own = weights[i * depth : (i + 1) * depth]
            kinds.append(stack.layers(own) if places else stack.asked(own))
        return kinds[0] if len(kinds) == 1 else [kinds[k % 2][k // 2] for k in range(self.num)]

    def through(
        self, x: Float[Tensor, "D N"], context: Tensor | None, weights: Sequence[Tensor], saved: Saved | None
    ) -> tuple[Float[Tensor, "D N"], Float[Tensor, " N"]]:
        """See `Chain`."""
        ask, bijection, orders, logs = self._stacks[0].ask, self.bijection, self.orders, []
        a, b = self._halves(0, orders(0, x))
        for k, layers in enumerate(self._steps(weights)):
            if k and not orders.stays[k]:
                a, b = self._halves(k, orders(k, torch.cat([a, b])))
            given = a if context is None else torch.cat([a, context])
            moved, log_slope = bijection.forward(b, ask(layers, given, saved), saved)
            if log_slope is not None:
                logs.append(log_slope)
            a, b = moved, a
        log_det = torch.cat(logs).sum(0) if logs else x.new_zeros(x.shape[1])
        h = orders(self.num, torch.cat([a, b]))
        if not self.scaled:
            return h, log_det
        if saved is not None:
            saved.append(h)
        s = weights[-1][:, None]
        return h * s.exp(), log_det.add_(s.sum())

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
        pull, orders = self._stacks[0].pull, self.orders
        if self.scaled:
            d_z = d_z * weights[-1].exp()[:, None]
            torch.add((d_z * saved.pop()).sum(1), d_log_det.sum(), out=gradients[-1])
        d_context = torch.zeros_like(context) if wanted[1] and context is not None else None
        steps, given = self._steps(weights), self._steps(gradients, places=True)
        d_moved, d_a = self._halves(self.num, orders.backward(self.num, d_z))
        for k in range(self.num - 1, -1, -1):
            d_b, d_said = self.bijection.backward(d_moved, d_log_det, saved)
            d = pull(steps[k], given[k], d_said, saved)
            matrix = steps[k][0][0]
            if k or wanted[0]:
                d_a = matrix_added(d_a, matrix[:, : len(d_a)].T, d)
            if d_context is not None:
                d_context.addmm_(matrix[:, len(d_a) :].T, d)
            if k and not orders.stays[k]:
                d_a, d_b = self._halves(k, orders.backward(k, torch.cat([d_a, d_b])))
            d_moved, d_a = d_a, d_b
        d_x = orders.backward(0, torch.cat([d_moved, d_a])) if wanted[0] else None
        return d_x, d_context, gradients

    def _halves(self, k: int, x: Float[Tensor, "D N"]) -> tuple[Tensor, Tensor]:
        """A row as the k-th step takes it, or as the one before has left it, in its two halves."""
        first = (self.space.size + 1 - k % 2) // 2
        return x[:first], x[first:]

    def undone(self, z: Float[Tensor, "D N"], context: Tensor | None, kept: list[Tensor] | None) -> Tensor:
        """See `Chain`."""
        weights, ask, orders = self.weights(), self._stacks[0].ask, self.orders
        if self.scaled:
            z = z * (-weights[-1][:, None]).exp()
            if kept is not None:
                kept.append(z)
        steps = self._steps(weights)
        moved, a = self._halves(self.num, orders.backward(self.num, z))
        for k in range(self.num - 1, -1, -1):
            b = self.bijection.inverse(moved, ask(steps[k], a if context is None else torch.cat([a, context])))
            if k and kept is not None:
                kept.append(orders.home(k, torch.cat([a, b])))
            if k and not orders.stays[k]:
                a, b = self._halves(k, orders.backward(k, torch.cat([a, b])))
            moved, a = a, b
        return orders.backward(0, torch.cat([moved, a]))
