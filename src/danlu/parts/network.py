"""What a recipe may say of a network of numbers or images."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from danlu.config import Config
from danlu.errors import UnsupportedError
from danlu.registry import export

Activation = Literal["tanh", "relu", "silu", "gelu", "elu"]
"""What comes between two layers."""


@export("network", "mlp", source="Rumelhart, Hinton and Williams, 1986, https://doi.org/10.1038/323533a0")
class MLP(Config):
    """Fully connected layers, one behind another."""

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (64, 64)
    """Width of each hidden layer; none is a linear function."""
    activation: Activation = "tanh"
    """What comes between two layers; what acts knows `tanh` and `relu`."""
    initial: Literal["orthogonal", "uniform"] = "orthogonal"
    """Weights at the start: `orthogonal` matrices and no biases, with a policy that is nearly even-handed; or `uniform`
    within 1 / sqrt(inputs of the layer), biases too, as torch begins."""


@export("network", "unet", source="Ronneberger, Fischer and Brox, 2015, https://arxiv.org/abs/1505.04597")
class UNet(Config):
    """Convolutions of an image at several scales, the finer ones seen again on the way back."""

    width: Annotated[int, Field(ge=1)] = 32
    """Channels at full size."""
    factors: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 2), min_length=1)
    """Channels at each scale, in widths; each scale has half the side of the one before it."""
    blocks: int = Field(default=1, ge=1)
    """Residual blocks a scale, on the way down and on the way up."""
    groups: int = Field(default=8, ge=1)
    """Groups that channels are normalised in, or as many fewer as divide them."""


@export("network", "patches", source="Peebles and Xie, 2023, https://arxiv.org/abs/2212.09748")
class Patches(Config):
    """A transformer over the patches of an image, all images' patches end to end."""

    patch: int = Field(default=2, ge=1)
    """Side of a patch, which the image's sides are multiples of."""
    width: int = Field(default=64, ge=1)
    """Of the hidden states."""
    layers: int = Field(default=4, ge=1)
    """Blocks of attention and feed-forward."""
    heads: int = Field(default=4, ge=1)
    """Of attention; a divisor of `width`."""
    feedforward: int = Field(default=4, ge=1)
    """Width of the feed-forward, in widths."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} is not divided by {self.heads} heads")
        return self


def mlp_of(network: Config | None, default: MLP) -> MLP:
    """The network that a recipe names, or a default.

    Raises:
        UnsupportedError: for another kind of network.
    """
    if network is None:
        return default
    if not isinstance(network, MLP):
        raise UnsupportedError(f"an agent's network is an mlp, not {type(network).__name__}", where="model")
    return network
