"""RealNVP: one half of a row is scaled and shifted as the other says, by turns.

    (a, b) -> (exp(s_k(a, c)) b + t_k(a, c), a),   log |det dz/dx| = sum_k sum_i s_k,i

Rows of numbers are coupled by halves. Images are coupled by pixels and by channels at several scales
(`danlu.parts.multiscale`), their networks small residual ones of convolutions, or whatever the recipe names; with an
mlp they are taken as the numbers they have. The paper's batch normalisation is left out: with it an update would depend
on how it is cut up.

References:
    Dinh, Sohl-Dickstein and Bengio, 2016, "Density estimation using real NVP", https://arxiv.org/abs/1605.08803
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import nn

from danlu.config import Config
from danlu.density import Space
from danlu.method.flows import FullyConnectedFlow
from danlu.parts.bijection import Affine
from danlu.parts.convolution import ResidualConvolutions
from danlu.parts.coupling import Coupling
from danlu.parts.flow import Flow
from danlu.parts.multiscale import Build, MultiScale
from danlu.parts.nets import network_of
from danlu.parts.network import MLP
from danlu.registry import export


@export("method", "realnvp", source="Dinh, Sohl-Dickstein and Bengio, 2016, https://arxiv.org/abs/1605.08803")
class RealNVP(FullyConnectedFlow):
    """RealNVP: affine coupling; of images by pixels and channels, at several scales."""

    takes_images: ClassVar[bool] = True

    largest_slope: float = Field(1000.0, gt=1)
    """A step spreads numbers out by less than this, and draws them together by less."""
    scales: int = Field(2, ge=1)
    """Of images, how many scales there are, or as many as their sides can be halved for; `steps` and `mixing` are those
    of other rows."""
    channels: int = Field(32, ge=1)
    """Of images, how many channels the networks have inside, where the recipe names none."""
    blocks: int = Field(2, ge=0)
    """Of images, how many residual blocks the networks have, where the recipe names none."""

    def flow(self, space: Space, network: MLP, seed: int) -> Flow:
        """See `FullyConnectedFlow`."""
        return Coupling(space, Affine(self.largest_slope), self.steps, network, self.mixing, seed)

    def density(self, space: Space, network: Config | None, seed: int) -> Flow:
        """See `DensityMethod`."""
        self.check(space)
        if len(space.shape) < 3 or isinstance(network, MLP) or space.shape[-2:] == (1, 1):
            return super().density(space, network, seed)
        return MultiScale(space, Affine(self.largest_slope), self.scales, self._build(network, space.context), seed)

    def _build(self, network: Config | None, context: int) -> Build:
        def convolutions(inputs: tuple[int, int, int], outputs: tuple[int, int, int], seed: int) -> nn.Module:
            return ResidualConvolutions(inputs[0], outputs[0], self.channels, self.blocks, context, seed)

        def named(inputs: tuple[int, int, int], outputs: tuple[int, int, int], seed: int) -> nn.Module:
            return network_of(network, inputs, outputs, context, seed, zero_last=True)

        return convolutions if network is None else named
