"""The fully connected networks that say how a flow's steps move what they move, with backward written out.

    h_0 = x,   h_l = f(h_{l-1} W_l + b_l),   y = h_L V + c

The networks of all steps are alike, so each layer of all of them lies in one tensor: an optimiser moves a few tensors
instead of dozens. A layer may be masked: a weight whose mask is 0 is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.parts.network import MLP
from danlu.parts.products import matrix_affine, matrix_product

Layers = Sequence[tuple[Tensor, Tensor]]
"""Of each layer of one network the matrix ``[in, out]`` and the bias ``[out]``."""


class Conditioners(nn.Module):
    """K networks of the same sizes, each for one step.

    Args:
        num: how many, K.
        inputs: numbers in.
        outputs: numbers out; all 0 at the start.
        shape: what the hidden layers are.
        seed: weights follow from it.
        masks: of each layer, the last one too, which weights there are, ``[in, out]``; all of them by default.
    """

    def __init__(
        self, num: int, inputs: int, outputs: int, shape: MLP, seed: int, masks: Sequence[Tensor] = ()
    ) -> None:
        super().__init__()
        self.num, self.activation = num, ACTIVATIONS[shape.activation]
        widths = (inputs, *shape.hidden, outputs)
        self.depth = len(widths) - 1
        chance = torch.Generator().manual_seed(seed % 2**63)
        for i, (rows, columns) in enumerate(pairwise(widths)):
            matrices, biases = torch.zeros(num, rows, columns), torch.zeros(num, columns)
            if i < self.depth - 1:
                _initialize(matrices, biases, shape, chance)
            self.register_parameter(f"matrix{i}", nn.Parameter(matrices))
            self.register_parameter(f"bias{i}", nn.Parameter(biases.flatten()))  # a vector, which is never decayed
            if masks:
                matrices *= masks[i]
                self.register_buffer(f"mask{i}", masks[i].to(matrices.dtype), persistent=False)
            self.register_parameter(f"matrix{i}", nn.Parameter(matrices))
            self.register_parameter(f"bias{i}", nn.Parameter(biases.flatten()))  # a vector, which is never decayed
        self._matrices = [f"matrix{i}" for i in range(self.depth)]
        self._biases = [f"bias{i}" for i in range(self.depth)]
        self._masks = [f"mask{i}" for i in range(self.depth)] if masks else []

    def weights(self) -> list[Tensor]:
        """The matrices ``[K, in, out]``, zero where there is no weight, and the biases ``[K * out]``, by turns."""
        matrices = [getattr(self, name) for name in self._matrices]
        if self._masks:
            matrices = [w * getattr(self, name) for w, name in zip(matrices, self._masks, strict=True)]
        biases = [getattr(self, name) for name in self._biases]
        return [tensor for pair in zip(matrices, biases, strict=True) for tensor in pair]

    def layers(self, weights: Sequence[Tensor]) -> list[Layers]:
        """Weights, or something in their shape, network by network; the memory is shared."""
        matrices = [stacked.unbind() for stacked in weights[::2]]
        biases = [flat.view(self.num, -1).unbind() for flat in weights[1::2]]
        return [list(zip(w, b, strict=True)) for w, b in zip(zip(*matrices), zip(*biases))]

    def ask(self, layers: Layers, x: Float[Tensor, "N I"], saved: list[Tensor] | None = None) -> Float[Tensor, "N O"]:
        """What one network makes of its input; where gradients are taken and nothing is saved, they go through.

        Args:
            layers: its weights.
            x: the input.
            saved: where what `pull` needs is put, the input included; None keeps nothing.
        """
        act, grad = self.activation, torch.is_grad_enabled()
        affine = torch.addmm if grad else matrix_affine
        if saved is not None:
            saved.append(x)
        for w, b in layers[:-1]:
            x = affine(b, x, w)
            if saved is not None and act.of_input:
                saved.append(x)
                x = act.apply(x)
            else:
                x = act.apply(x) if grad else act.in_place(x)
            if saved is not None:
                saved.append(x)
        w, b = layers[-1]
        return affine(b, x, w)

    def pull(self, layers: Layers, into: Layers, d: Float[Tensor, "N O"], saved: list[Tensor]) -> Float[Tensor, "N H"]:
        """Put the gradients of one network's weights into their places.

        Args:
            layers: its weights.
            into: the places.
            d: the gradient of what it said.
            saved: what `ask` has put there last, which is taken off.

        Returns:
            The gradient of what the first matrix and bias make of the input.
        """
        act = self.activation
        for i in range(self.depth - 1, -1, -1):
            y = saved.pop()
            matrix_product(y.mT, d, into[i][0])
            torch.sum(d, 0, out=into[i][1])
            if i:
                d = matrix_product(d, layers[i][0].mT)
                d = act.slope(d, saved.pop() if act.of_input else y)
        return d


@dataclass(frozen=True)
class Function:
    """What comes between two layers.

    Attributes:
        apply: the function.
        in_place: the same into the memory of its input, which is no longer needed.
        slope: the gradient of its input, given that of its output and, as `of_input` says, its input or its output.
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
    "relu": Function(torch.relu, torch.relu_, lambda d, y: _aten.threshold_backward.default(d, y, 0)),
    "tanh": Function(torch.tanh, _tanh_, _aten.tanh_backward.default),
    "elu": Function(F.elu, lambda x: F.elu(x, inplace=True), lambda d, y: _aten.elu_backward.default(d, 1, 1, 1, True, y)),
    "silu": Function(F.silu, lambda x: F.silu(x, inplace=True), _aten.silu_backward.default, of_input=True),
    "gelu": Function(F.gelu, F.gelu, _aten.gelu_backward.default, of_input=True),
}
"""By the names that a recipe has for them."""


@torch.no_grad()
def _initialize(matrices: Tensor, biases: Tensor, shape: MLP, chance: torch.Generator) -> None:
    if shape.initial == "orthogonal":
        for matrix in matrices:
            nn.init.orthogonal_(matrix, math.sqrt(2.0), generator=chance)
        return
    bound = 1 / math.sqrt(matrices.shape[1])
    matrices.uniform_(-bound, bound, generator=chance)
    biases.uniform_(-bound, bound, generator=chance)
