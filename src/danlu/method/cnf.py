"""Continuous normalizing flow: rows are noise carried along a field, which is fitted by their likelihood.

    dx/dt = f(t, x),    log p(x_1) = log N(x_0; 0, 1) - integral_0^1 tr(df / dx) dt,    loss = - log p(x_1)

Every row of an update is followed back to its noise, and the gradient back through the steps that were taken
(`adjoint`: by solving the adjoint equation). What steps dopri5 takes depends on which rows go through at once, so a
loss depends on that as far as the tolerance lets it; with steps of the same length it does not.

References:
    Chen et al., 2018, "Neural ordinary differential equations", https://arxiv.org/abs/1806.07366
    Grathwohl et al., 2019, "FFJORD: free-form continuous dynamics for scalable reversible generative models",
    https://arxiv.org/abs/1810.01367
"""

from __future__ import annotations

import torch
from pydantic import Field

from danlu.config import Config
from danlu.contracts import Outcome
from danlu.density import Density, Rows, Space
from danlu.method.continuous import ContinuousMethod
from danlu.method.maximum_likelihood import MaximumLikelihood
from danlu.parts.continuous import ContinuousFlow, Solving, Timed
from danlu.parts.network import MLP
from danlu.parts.times import harmonic
from danlu.registry import export

_DEFAULT = MLP(hidden=(64, 64), activation="silu", initial="uniform")


@export("method", "cnf", source="Chen et al., 2018, https://arxiv.org/abs/1806.07366")
class CNF(ContinuousMethod, MaximumLikelihood):
    """Continuous normalizing flow: a field that carries noise to rows, fitted by their likelihood."""

    adjoint: bool = False
    """Solve the adjoint equation for the gradient, by torchdiffeq, in memory that does not grow with the steps; else
    the gradient goes back through the steps that were taken, which is exact and sooner, and keeps a row a step."""
    frequencies: int = Field(3, ge=1)
    """The network is told sin and cos of so many multiples of pi t."""

    @property
    def notes(self) -> tuple[str, ...]:
        """See `DensityMethod`: what steps of a fixed length do to a likelihood that is made as high as it gets."""
        if self.solver == "dopri5":
            return ()
        return (
            f"{self.solver} follows the field in steps of one length, and a field that is steep between them looks "
            "likelier than it is: look at the likelihood by method.solver=dopri5",
        )

    def density(self, space: Space, network: Config | None, seed: int) -> ContinuousFlow:
        """See `DensityMethod`: it begins with a field of zeros."""
        network = network or _DEFAULT
        field = Timed(space, network, harmonic(self.frequencies), seed, zero_last=True)
        solving = Solving(self.following, self.following, self.trace, self.probe, self.adjoint)
        return ContinuousFlow(space, network, field, solving)

    @property
    def terms(self) -> tuple[str, ...]:
        """See `DensityMethod`: the negative log-likelihood, and how often the network was asked."""
        return ("nll", "evaluations")

    def fit(self, density: Density, rows: Rows) -> Outcome:
        """See `DensityMethod`."""
        assert isinstance(density, ContinuousFlow)
        log_prob = density.log_prob(rows.x, density.space.vector(rows.condition), rows.keys)
        if rows.log_det is not None:
            log_prob = log_prob + rows.log_det
        asked = torch.tensor(float(density.evaluations * len(rows)))
        return Outcome({"nll": -log_prob.sum()}, {"evaluations": asked})
