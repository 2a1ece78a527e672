"""The fully connected networks that say how a flow's steps move what they move, with backward written out.

    h_0 = x,   h_l = f(W_l h_{l-1} + b_l),   y = V h_L + c

Rows stand side by side: x is ``[I, N]``. The networks of all steps are alike, so each layer of all of them lies in one
tensor: an optimiser moves a few tensors instead of dozens. A layer may be masked: a weight whose mask is 0 is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.parts.nets import initialize
from danlu.parts.network import MLP
from danlu.parts.products import LARGE, matrix_affine, matrix_product

Layers = Sequence[tuple[Tensor, Tensor]]
"""Of each layer of one network the matrix ``[out, in]`` and the bias ``[out, 1]``."""


class Conditioners(nn.Module):
    """K networks of the same sizes, each for one step.

    Args:
        num: how many, K.
        inputs: numbers in.
        outputs: numbers out; all 0 at the start.
        shape: what the hidden layers are.
        seed: weights follow from it.
        masks: of each layer, the last one too, which weights there are, ``[K, out, in]``, or ``[1, out, in]`` where all
            networks have them; all of them by default.
    """

    def __init__(
        self, num: int, inputs: int, outputs: int, shape: MLP, seed: int, masks: Sequence[Tensor] = ()
    ) -> None:
        super().__init__()
        self.num, self.activation = num, ACTIVATIONS[shape.activation]
        widths = (inputs, *shape.hidden, outputs)
        self.depth = len(widths) - 1
        self._widest = max(a * b for a, b in pairwise(widths))
        chance = torch.Generator().manual_seed(seed % 2**63)
        for i, (columns, rows) in enumerate(pairwise(widths)):
            matrices, biases = torch.zeros(num, rows, columns), torch.zeros(num, rows)
            if i < self.depth - 1:
                for matrix, bias in zip(matrices, biases, strict=True):
                    initialize(matrix, bias, shape, chance, gain=math.sqrt(2.0))
            if masks:
                matrices *= masks[i]
                self.register_buffer(f"mask{i}", masks[i].to(matrices.dtype), persistent=False)
            self.register_parameter(f"matrix{i}", nn.Parameter(matrices))
            self.register_parameter(f"bias{i}", nn.Parameter(biases.flatten()))  # a vector, which is never decayed
        self._names = [f"{kind}{i}" for i in range(self.depth) for kind in ("matrix", "bias")]
        self._masks = [f"mask{i}" for i in range(self.depth)] if masks else []
        self._held: tuple[list[int], list[Layers]] | None = None

    def weights(self) -> list[Tensor]:
        """The matrices ``[K, out, in]`` and the biases ``[K * out]`` of all layers by turns."""
        return [getattr(self, name) for name in self._names]

    @torch.no_grad()
    def set_masks(self, masks: Sequence[Tensor]) -> None:
        """Other weights there are from now on, of the same shapes."""
        for mask, name in zip(masks, self._masks, strict=True):
            getattr(self, name).copy_(mask)

    def mask(self, gradients: Sequence[Tensor]) -> None:
        """Put zeros where there are no weights."""
        for gradient, name in zip(gradients[::2], self._masks, strict=False):
            gradient.mul_(getattr(self, name))

    def masked(self, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        """Weights with zeros where there are none."""
        if not self._masks:
            return weights
        matrices = [w * getattr(self, name) for w, name in zip(weights[::2], self._masks, strict=True)]
        return [tensor for pair in zip(matrices, weights[1::2], strict=True) for tensor in pair]

    def asked(self, weights: Sequence[Tensor]) -> list[Layers]:
        """The layers of each network, of weights as they are asked; made once for those that stay where they are."""
        if torch.is_grad_enabled():
            return self.layers(weights)
        places = [w.data_ptr() for w in weights]
        if self._held is None or self._held[0] != places:
            self._held = places, self.layers([w.detach() for w in weights])
        return self._held[1]

    def layers(self, weights: Sequence[Tensor]) -> list[Layers]:
        """Weights, or something in their shape, network by network; the memory is shared."""
        each = [
            zip(matrices.unbind(), biases.view(self.num, -1, 1).unbind(), strict=True)
            for matrices, biases in zip(weights[::2], weights[1::2], strict=True)
        ]
        return list(zip(*each, strict=True))

    def __getstate__(self) -> dict[str, Any]:
        """A copy has weights of its own, and so layers of its own."""
        return {**self.__dict__, "_held": None}

    def ask(self, layers: Layers, x: Float[Tensor, "I N"], saved: list[Tensor] | None = None) -> Float[Tensor, "O N"]:
        """What one network makes of its input; where gradients are taken and nothing is saved, they go through.

        Args:
            layers: its weights.
            x: the input.
            saved: where what `pull` needs is put, the input included; None keeps nothing.
        """
        act, grad = self.activation, torch.is_grad_enabled()
        affine = torch.addmm if grad or self._small(x) else matrix_affine
        if saved is not None:
            saved.append(x)
        for w, b in layers[:-1]:
            x = affine(b, w, x)
            if saved is not None and act.of_input:
                saved.append(x)
                x = act.apply(x)
            else:
                x = act.apply(x) if grad else act.in_place(x)
            if saved is not None:
                saved.append(x)
        w, b = layers[-1]
        return affine(b, w, x)

    def _small(self, x: Float[Tensor, "D N"]) -> bool:
        """Whether all products of so many rows are small, so that nothing needs to be asked of each."""
        return x.shape[1] * self._widest < LARGE

    def pull(self, layers: Layers, into: Layers, d: Float[Tensor, "O N"], saved: list[Tensor]) -> Float[Tensor, "H N"]:
        """Put the gradients of one network's weights into their places.

        Args:
            layers: its weights.
            into: the places.
            d: the gradient of what it said.
            saved: what `ask` has put there last, which is taken off.

        Returns:
            The gradient of what the first matrix and bias make of the input.
        """
        act, product = self.activation, torch.mm if self._small(d) else matrix_product
        for i in range(self.depth - 1, -1, -1):
            y, (d_w, d_b) = saved.pop(), into[i]
            product(d, y.T, out=d_w)
            torch.sum(d, 1, keepdim=True, out=d_b)
            if i:
                d = product(layers[i][0].T, d)
                d = act.slope(d, saved.pop() if act.of_input else y)
        return d


@dataclass(frozen=True)
class Function:
    """What comes between two layers.

    Attributes:
        apply: the function.
        in_place: the same into the memory of its input, which is no longer needed.
        slope: the gradient of its input, into the memory of the gradient of its output; given that, and its input or
            its output, as `of_input` says.
        of_input: which.
    """

    apply: Callable[[Tensor], Tensor]
    in_place: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]
    of_input: bool = False


def _tanh_(x: Tensor) -> Tensor:
    """In place; numpy's takes a tenth of the time of torch's on a processor."""
    if x.device.type != "cpu":
        return x.tanh_()
    np.tanh(x.numpy(), out=x.numpy())
    return x


_aten = torch.ops.aten
ACTIVATIONS: Mapping[str, Function] = {
    "relu": Function(torch.relu, torch.relu_, lambda d, y: _aten.threshold_backward.grad_input(d, y, 0, grad_input=d)),
    "tanh": Function(torch.tanh, _tanh_, lambda d, y: _aten.tanh_backward.grad_input(d, y, grad_input=d)),
    "elu": Function(
        F.elu,
        lambda x: F.elu(x, inplace=True),
        lambda d, y: _aten.elu_backward.grad_input(d, 1, 1, 1, True, y, grad_input=d),
    ),
    "silu": Function(
        F.silu,
        lambda x: F.silu(x, inplace=True),
        lambda d, x: _aten.silu_backward.grad_input(d, x, grad_input=d),
        of_input=True,
    ),
    "gelu": Function(
        F.gelu,
        lambda x: x.copy_(F.gelu(x)),
        lambda d, x: _aten.gelu_backward.grad_input(d, x, grad_input=d),
        of_input=True,
    ),
}
"""By the names that a recipe has for them."""
