"""Masked autoregressive flow: every number of a row is scaled and shifted as those before it say.

    z_i = exp(s_i) x_i + t_i,   (s_i, t_i) = m_k,i(x_1 .. x_{i-1}, c),   log |det dz/dx| = sum_i s_i

That is u_i = (x_i - mu_i) exp(-alpha_i) of the paper with s_i = -alpha_i and t_i = -mu_i exp(-alpha_i). How likely a
row is takes one pass a step; a row is made number by number.

References:
    Papamakarios, Pavlakou and Murray, 2017, "Masked autoregressive flow for density estimation",
    https://arxiv.org/abs/1705.07057
"""

from __future__ import annotations

from pydantic import Field

from danlu.density import Space
from danlu.method.flows import FullyConnectedFlow
from danlu.parts.bijection import Affine
from danlu.parts.flow import Flow
from danlu.parts.masked import Masked
from danlu.parts.network import MLP
from danlu.registry import export


@export("method", "maf", source="Papamakarios, Pavlakou and Murray, 2017, https://arxiv.org/abs/1705.07057")
class MAF(FullyConnectedFlow):
    """Masked autoregressive flow: each number moved as those before it say, all likelihoods in one pass."""

    steps: int = Field(5, ge=1)
    """How many steps there are, each with a network of its own."""
    largest_slope: float = Field(1000.0, gt=1)
    """A step spreads numbers out by less than this, and draws them together by less."""

    def flow(self, space: Space, network: MLP, seed: int) -> Flow:
        """See `FullyConnectedFlow`."""
        return Masked(space, Affine(self.largest_slope), self.steps, network, self.mixing, seed)
