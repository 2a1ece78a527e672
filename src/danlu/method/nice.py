"""NICE: one half of a row is shifted by a function of the other, by turns, and all is scaled once at the end.

    (a, b) -> (b + m_k(a, c), a),   z = exp(s) h,   log p(x) = log p(z) + sum_i s_i

Shifts leave volumes as they are, so the log-determinant is that of the diagonal scaling alone, the same everywhere: a
number whose s_i is large varies little in the data. The prior is logistic, or standard normal. On MNIST the paper has 4
couplings of 5 x 1000 ReLU units.

References:
    Dinh, Krueger and Bengio, 2014, "NICE: non-linear independent components estimation",
    https://arxiv.org/abs/1410.8516
"""

from __future__ import annotations

from typing import Literal

from danlu.density import Space
from danlu.method.flows import FullyConnectedFlow
from danlu.parts.bijection import Additive
from danlu.parts.coupling import Coupling
from danlu.parts.flow import Flow
from danlu.parts.network import MLP
from danlu.parts.prior import Logistic, StandardNormal
from danlu.registry import export


@export("method", "nice", source="Dinh, Krueger and Bengio, 2014, https://arxiv.org/abs/1410.8516")
class NICE(FullyConnectedFlow):
    """NICE: additive coupling, which keeps volumes, and a diagonal scaling."""

    prior: Literal["logistic", "normal"] = "logistic"
    """What the noise is distributed as."""

    def flow(self, space: Space, network: MLP, seed: int) -> Flow:
        """See `FullyConnectedFlow`."""
        prior = Logistic() if self.prior == "logistic" else StandardNormal()
        return Coupling(space, Additive(), self.steps, network, self.mixing, seed, prior, scaled=True)
