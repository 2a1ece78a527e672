"""What a recipe may say of a network of numbers or images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

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
    initial: Literal["orthogonal", "uniform", "default"] = "orthogonal"
    """Weights at the start: `orthogonal` matrices and no biases, with a policy that is nearly even-handed; or `uniform`
    within 1 / sqrt(inputs of the layer), biases too, which is torch's `default`."""


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
