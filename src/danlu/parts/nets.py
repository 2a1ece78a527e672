"""From what a recipe says of a network to the network: numbers or an image in, numbers or an image out.

Whatever else the outputs depend on (a class, a vector, a time) is put side by side in one vector a row, the context.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.config import Config
from danlu.errors import UnsupportedError
from danlu.parts.activations import ACTIVATIONS
from danlu.parts.network import MLP, Patches, UNet
from danlu.parts.patches import PatchNetwork
from danlu.parts.unet import UNetwork


def network_of(
    config: Config | None,
    shape_in: tuple[int, ...],
    outputs: tuple[int, ...],
    context: int,
    seed: int,
    *,
    zero_last: bool = False,
) -> nn.Module:
    """A network whose ``forward(x: [N, *shape_in], context: [N, C] | None)`` gives ``[N, *outputs]``.

    Args:
        config: the recipe's model; None is an `MLP` as it is by default.
        shape_in: of a row, ``(D,)``; or of an image, ``(C, H, W)``.
        outputs: the shape of what comes out.
        context: how many numbers the context has, C; 0 where there is none.
        seed: weights follow from it.
        zero_last: begin with a last layer of zeros, so that all outputs are 0.

    Raises:
        UnsupportedError: when the network cannot take such rows.
    """
    if config is None or isinstance(config, MLP):
        return FullyConnected(shape_in, outputs, context, config or MLP(), seed, zero_last=zero_last)
    if not isinstance(config, UNet | Patches):
        what = f"{type(config).__name__} is no network of numbers or images"
        raise UnsupportedError(what, where="model", do="Use mlp, unet or patches.")
    name = type(config).__name__.lower()
    if len(shape_in) != 3 or len(outputs) != 3 or shape_in[1:] != outputs[1:]:
        what = f"{name} is for images, and a row here is of shape {shape_in}"
        raise UnsupportedError(what, where="model", do="Use mlp, or data of images with a method that takes them.")
    if isinstance(config, UNet):
        return UNetwork(shape_in, outputs[0], context, config, seed, zero_last=zero_last)
    return PatchNetwork(shape_in, outputs[0], context, config, seed, zero_last=zero_last)


class FullyConnected(nn.Module):
    """h_0 = (x, context),  h_l = f(W_l h_{l-1} + b_l),  y = V h_L + c; differentiable as often as one likes.

    Args:
        shape_in: of a row; an image is taken as the numbers that it has.
        outputs: the shape of what comes out.
        context: how many numbers the context has.
        config: what the hidden layers are.
        seed: weights follow from it.
        zero_last: begin with V = 0 and c = 0.
    """

    def __init__(
        self,
        shape_in: tuple[int, ...],
        outputs: tuple[int, ...],
        context: int,
        config: MLP,
        seed: int,
        *,
        zero_last: bool = False,
    ) -> None:
        super().__init__()
        self.outputs, self._flat = outputs, len(shape_in) == 1 == len(outputs)
        self._act = ACTIVATIONS[config.activation]
        chance = torch.Generator().manual_seed(seed % 2**63)
        widths = (math.prod(shape_in) + context, *config.hidden, math.prod(outputs))
        last = len(widths) - 2
        for i, (inputs, width) in enumerate(pairwise(widths)):
            weight, bias = torch.zeros(width, inputs), torch.zeros(width)
            if not (zero_last and i == last):
                initialize(weight, bias, config, chance, gain=1.0 if i == last else math.sqrt(2.0))
            self.register_parameter(f"weight{i}", nn.Parameter(weight))
            self.register_parameter(f"bias{i}", nn.Parameter(bias))

    def forward(self, x: Float[Tensor, "N *in"], context: Float[Tensor, "N C"] | None = None) -> Tensor:
        """What it makes of each row, ``[N, *outputs]``."""
        if not self._flat:
            x = x.flatten(1)
        if context is not None:
            x = torch.cat([x, context], 1)
        *hidden, weight, bias = cast(Iterable[Tensor], self._parameters.values())
        for i in range(0, len(hidden), 2):
            x = self._act(F.linear(x, hidden[i], hidden[i + 1]))
        x = F.linear(x, weight, bias)
        return x if self._flat else x.view(len(x), *self.outputs)


@torch.no_grad()
def initialize(weight: Tensor, bias: Tensor, config: MLP, chance: torch.Generator, *, gain: float = 1.0) -> None:
    """Set a layer's weights as a recipe asks for.

    Args:
        weight: ``[out, in]``.
        bias: ``[out]``.
        config: says how.
        chance: where numbers are drawn from.
        gain: of orthogonal matrices.
    """
    if config.initial == "orthogonal":
        nn.init.orthogonal_(weight, gain, generator=chance)
        bias.zero_()
        return
    bound = 1 / math.sqrt(max(weight.shape[1], 1))
    weight.uniform_(-bound, bound, generator=chance)
    bias.uniform_(-bound, bound, generator=chance)
