"""Normalising flows: rows made of noise by a function that can be inverted, whose volume is known.

    x -> z = f(x),    log p(x) = log p(z) + log |det df/dx|

`Flow` is any of them; `Chain` is one of fully connected steps, which goes through as one operation with its backward
written out: of small networks, a graph of a dozen nodes a step costs more than their products. Within it rows stand
side by side, ``[D, N]``: halves, blocks of outputs and pieces of splines are then each in one piece of memory, and
products with few outputs are those of matrices with few rows, which are faster than those with few columns.

References:
    Rezende and Mohamed, 2015, "Variational inference with normalizing flows", https://arxiv.org/abs/1505.05770
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from danlu.density import Density, Space
from danlu.parts.prior import Prior, StandardNormal

Saved: TypeAlias = list[Tensor]
"""What backward needs of forward, in the order in which forward made it."""


class Flow(Density, ABC):
    """A density whose rows are made of noise by an invertible function of known volume.

    Args:
        space: what a row is.
        prior: what its noise is distributed as; standard normal by default.
    """

    def __init__(self, space: Space, prior: Prior | None = None) -> None:
        super().__init__(space)
        self.prior: Prior = prior or StandardNormal()

    @abstractmethod
    def forward(self, x: Float[Tensor, "N ..."], context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The noise of each row, ``[N, *shape]``, and log |det dz/dx|, ``[N]``."""

    @abstractmethod
    def stages(self, z: Float[Tensor, "N ..."], context: Tensor | None, kept: list[Tensor] | None) -> Tensor:
        """The rows made of noise.

        Args:
            z: the noise.
            context: what the rows are conditioned on.
            kept: where every stage on the way is put, noise and rows left out, ``[N, *shape]`` each; None keeps none.
        """

    def noise(self, keys: Int[Tensor, " N"]) -> Float[Tensor, "N ..."]:
        """See `Density`."""
        return self.prior.noise(keys, self.space.size).view(len(keys), *self.space.shape)

    def encode(self, x: Float[Tensor, "N ..."], context: Tensor | None = None) -> Float[Tensor, "N ..."]:
        """See `Density`."""
        self.evaluations = 1
        return self(x, context)[0]

    def decode(self, z: Float[Tensor, "N ..."], context: Tensor | None = None) -> Float[Tensor, "N ..."]:
        """See `Density`."""
        self.evaluations = self.to_decode
        return self.stages(z, context, None)

    @property
    def to_decode(self) -> int:
        """How often each network is asked to make a row."""
        return 1

    def path(self, z: Float[Tensor, "N ..."], context: Tensor | None = None) -> list[Tensor]:
        """See `Density`: the stage after every step."""
        kept: list[Tensor] = [z]
        x = self.stages(z, context, kept)
        return [*kept, x]


class Chain(Flow, ABC):
    """A flow of steps whose backward is written out; rows are vectors, and images taken as the numbers they have."""

    @abstractmethod
    def weights(self) -> Sequence[Tensor]:
        """All tensors that `through` asks for, in its order."""

    @abstractmethod
    def through(
        self, x: Float[Tensor, "D N"], context: Tensor | None, weights: Sequence[Tensor], saved: Saved | None
    ) -> tuple[Float[Tensor, "D N"], Float[Tensor, " N"]]:
        """The noise and log |det dz/dx|; no gradient goes through.

        Args:
            x: rows, side by side.
            context: ``[C, N]``.
            weights: see `weights`.
            saved: where what `back` needs is put; None where it will not be asked.
        """

    @abstractmethod
    def back(
        self,
        d_z: Float[Tensor, "D N"],
        d_log_det: Float[Tensor, " N"],
        context: Tensor | None,
        weights: Sequence[Tensor],
        saved: Saved,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
        """The gradients of rows, ``[D, N]``, of contexts, ``[C, N]``, and of every weight.

        Args:
            d_z: the gradient of the noise.
            d_log_det: the gradient of log |det dz/dx|.
            context: see `through`.
            weights: see `through`.
            saved: as `through` has left it; it is used up.
            wanted: whether those of rows, and of contexts, are wanted.
        """

    @abstractmethod
    def undone(self, z: Float[Tensor, "D N"], context: Tensor | None, kept: list[Tensor] | None) -> Tensor:
        """The rows made of noise, side by side; see `stages`."""

    def forward(self, x: Float[Tensor, "N ..."], context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `Flow`."""
        flat, told, weights = _beside(x), _beside(context), self.weights()
        if torch.is_grad_enabled():
            z, log_det = _Through.apply(self, flat, told, *weights)
        else:
            z, log_det = self.through(flat, told, weights, None)
        return z.T.reshape(x.shape), log_det

    def log_prob(self, x: Float[Tensor, "N ..."], context: Tensor | None = None) -> Float[Tensor, " N"]:
        """See `Density`: exact."""
        self.evaluations = 1
        flat, told, weights = _beside(x), _beside(context), self.weights()
        if torch.is_grad_enabled():
            return _Likelihood.apply(self, flat, told, *weights)  # type: ignore[no-any-return]
        z, log_det = self.through(flat, told, weights, None)
        return self.prior.log_prob(z.T) + log_det

    def stages(self, z: Float[Tensor, "N ..."], context: Tensor | None, kept: list[Tensor] | None) -> Tensor:
        """See `Flow`."""
        between: list[Tensor] | None = None if kept is None else []
        x = self.undone(_beside(z), _beside(context), between)
        if kept is not None:
            kept += [stage.T.reshape(z.shape) for stage in between or ()]
        return x.T.reshape(z.shape)


def _beside(x: Any) -> Any:
    """Rows side by side, ``[D, N]``; None where there are none."""
    return None if x is None else (x if x.dim() == 2 else x.flatten(1)).T


class _Through(torch.autograd.Function):
    """A `Chain` as one operation."""

    @staticmethod
    def forward(ctx: Any, chain: Chain, x: Tensor, context: Tensor | None, *weights: Tensor) -> tuple[Tensor, Tensor]:
        saved: Saved = []
        outcome = chain.through(x, context, weights, saved)
        ctx.chain, ctx.num = chain, len(weights)
        ctx.save_for_backward(context, *weights, *saved)
        return outcome

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_z: Tensor, d_log_det: Tensor) -> tuple[Tensor | None, ...]:
        context, *tensors = ctx.saved_tensors
        weights, saved = tensors[: ctx.num], tensors[ctx.num :]
        wanted = (ctx.needs_input_grad[1], ctx.needs_input_grad[2])
        d_x, d_context, gradients = ctx.chain.back(d_z, d_log_det, context, weights, saved, wanted)
        return None, d_x, d_context, *gradients


class _Likelihood(torch.autograd.Function):
    """The log-likelihood of a `Chain` as one operation."""

    @staticmethod
    def forward(ctx: Any, chain: Chain, x: Tensor, context: Tensor | None, *weights: Tensor) -> Tensor:
        saved: Saved = []
        z, log_det = chain.through(x, context, weights, saved)
        ctx.chain, ctx.num = chain, len(weights)
        ctx.save_for_backward(context, z, *weights, *saved)
        return chain.prior.log_prob(z.T).add_(log_det)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        context, z, *tensors = ctx.saved_tensors
        weights, saved = tensors[: ctx.num], tensors[ctx.num :]
        wanted = (ctx.needs_input_grad[1], ctx.needs_input_grad[2])
        d_z = ctx.chain.prior.slope(z).mul_(d)
        d_x, d_context, gradients = ctx.chain.back(d_z, d, context, weights, saved, wanted)
        return None, d_x, d_context, *gradients
