"""Neural spline coupling: one half of a row bends the other by curves that can be inverted in closed form.

    (a, b) -> (g(b; m_k(a, c)), a)

g is, between -B and B, a monotone rational-quadratic spline of K bins, each of its own width, height and slopes, and
the identity outside. One step can part a mode into many, which an affine one cannot. Data should be standardised, so
that they lie within the bounds.

References:
    Durkan, Bekasov, Murray and Papamakarios, 2019, "Neural spline flows", https://arxiv.org/abs/1906.04032
"""

from __future__ import annotations

from pydantic import Field

from danlu.density import Space
from danlu.method.flows import FullyConnectedFlow
from danlu.parts.coupling import Coupling
from danlu.parts.flow import Flow
from danlu.parts.network import MLP
from danlu.parts.spline import RationalQuadratic
from danlu.registry import export


@export("method", "spline_coupling", source="Durkan et al., 2019, https://arxiv.org/abs/1906.04032")
class SplineCoupling(FullyConnectedFlow):
    """Neural spline coupling: one half of a row says by which monotone curves the other is bent."""

    steps: int = Field(6, ge=2)
    """How many steps there are, each with a network of its own."""
    bins: int = Field(8, ge=2, le=500)
    """K: of how many pieces a curve is made."""
    bound: float = Field(5.0, gt=0)
    """B: numbers further from 0 are left where they are; in units of what the network sees, deviations as a rule."""

    def flow(self, space: Space, network: MLP, seed: int) -> Flow:
        """See `FullyConnectedFlow`."""
        return Coupling(space, RationalQuadratic(self.bins, self.bound), self.steps, network, self.mixing, seed)
