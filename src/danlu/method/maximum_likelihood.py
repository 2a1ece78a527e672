"""Maximum likelihood of rows: the density of the data is made as high as it gets.

    loss = - sum_n [ log p(f(x_n) | c_n) + log |det f'(x_n)| ]

divided once by the number of rows; f is how rows come from the data's units to what the network sees, so that the loss
is in nats of the data's own units, whatever f is.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping

from danlu.contracts import Outcome
from danlu.density import Density, DensityMethod, Rows


class MaximumLikelihood(DensityMethod, ABC):
    """Maximum likelihood of each row, given what it is conditioned on."""

    mechanism = "maximum likelihood"

    @property
    def terms(self) -> tuple[str, ...]:
        """See `DensityMethod`: the negative log-likelihood."""
        return ("nll",)

    def fit(self, density: Density, rows: Rows) -> Outcome:
        """See `DensityMethod`."""
        log_prob = density.log_prob(rows.x, density.space.vector(rows.condition))
        if rows.log_det is not None:
            log_prob = log_prob + rows.log_det
        return Outcome({"nll": -log_prob.sum()}, {})

    def summarize(self, averages: Mapping[str, float]) -> dict[str, float]:
        """Adds the likelihood's part under its own name: it is all of the loss where nothing else is in it."""
        return {**averages, "nll": averages.get("nll", averages["loss"])}
