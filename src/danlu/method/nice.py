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

import torch
from jaxtyping import Float
from torch import Tensor, nn

from danlu.density import Space
from danlu.method.flows import FullyConnectedFlow
from danlu.parts.bijection import Additive
from danlu.parts.coupling import Coupling
from danlu.parts.flow import Flow
from danlu.parts.network import MLP
from danlu.parts.prior import Logistic, Prior, StandardNormal
from danlu.registry import export


class Scaled(Flow):
    """Couplings, and behind them one scale for each number.

    Args:
        couplings: those, which keep volumes or not.
        prior: see `Flow`.

    Attributes:
        log_scale: s, ``[*shape]``; 0 at the start.
    """

    def __init__(self, couplings: Coupling, prior: Prior) -> None:
        super().__init__(couplings.space, prior)
        self.couplings = couplings
        self.log_scale = nn.Parameter(torch.zeros(couplings.space.shape))

    def forward(self, x: Float[Tensor, "N ..."], context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `Flow`: the log-determinant is the sum of s."""
        h, log_det = self.couplings(x, context)
        return h * self.log_scale.exp(), log_det + self.log_scale.sum()

    def stages(self, z: Float[Tensor, "N ..."], context: Tensor | None, kept: list[Tensor] | None) -> Tensor:
        """See `Flow`."""
        h = z * (-self.log_scale).exp()
        if kept is not None:
            kept.append(h)
        return self.couplings.stages(h, context, kept)


@export("method", "nice", source="Dinh, Krueger and Bengio, 2014, https://arxiv.org/abs/1410.8516")
class NICE(FullyConnectedFlow):
    """NICE: additive coupling, which keeps volumes, and a diagonal scaling."""

    prior: Literal["logistic", "normal"] = "logistic"
    """What the noise is distributed as."""

    def flow(self, space: Space, network: MLP, seed: int) -> Flow:
        """See `FullyConnectedFlow`."""
        prior = Logistic() if self.prior == "logistic" else StandardNormal()
        return Scaled(Coupling(space, Additive(), self.steps, network, self.mixing, seed), prior)
