"""Maximum likelihood of chosen tokens, each given those before it.

    loss = - sum_i w_i log p(x_i | x_1 .. x_{i-1}),   p(x_i | x_<i) = softmax(E phi(x_<i))

divided once by the sum of the weights over the whole update. Which tokens are chosen is what its methods differ in.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Mapping

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from danlu.batch import Batch, Sample
from danlu.contracts import Outcome, SequenceMethod
from danlu.packed import Packed, Targets
from danlu.parts.readout import Likelihood


class MaximumLikelihood(SequenceMethod, ABC):
    """Maximum likelihood of each chosen token given all that come before it."""

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Probability spread evenly over the vocabulary; 0 is plain maximum likelihood."""
    z_loss: float = Field(0.0, ge=0)
    """Weight of the squared log-normaliser, which keeps it near 0; 1e-4 is usual."""

    def size(self, sample: Sample) -> int:
        """See `Method`; known without making the group."""
        return len(sample.tokens) - 1

    def counts(self, batch: Batch) -> dict[str, float]:
        """Targets, by weight; and their bytes, in the unit that makes nats of loss bits a byte."""
        targets = float(batch.targets.weights.sum())
        return {"nll": targets, "accuracy": targets, "bits_per_byte": batch.num_bytes * math.log(2)}

    def loss(self, models: Mapping[str, nn.Module], batch: Batch) -> Outcome:
        """The negative log-likelihood; regularised while training, plain while measuring."""
        policy = models["policy"]
        regularised = policy.training and (self.label_smoothing > 0 or self.z_loss > 0)
        options = {"label_smoothing": self.label_smoothing, "z_loss": self.z_loss} if regularised else {}
        (sums,) = policy(batch.packed, [Likelihood(batch.targets, **options)])
        metrics = {"accuracy": sums.correct, "bits_per_byte": sums.nll}
        return Outcome({"nll": sums.loss}, metrics | ({"nll": sums.nll} if regularised else {}))

    def summarize(self, averages: Mapping[str, float]) -> dict[str, float]:
        """Adds perplexity; where the loss is regularised, of the likelihood alone."""
        nll = averages.get("nll", averages["loss"])
        return {**averages, "perplexity": math.exp(nll) if nll < 700 else math.inf}


def causal_group(sample: Sample, weights: Float[Tensor, " n"]) -> Batch:
    """A sample as one causal segment whose row i predicts token i + 1, where that has a weight.

    Rows behind the last of these are left out: nothing that is learned sees them.
    """
    tokens = torch.from_numpy(sample.tokens)
    rows = weights.nonzero().squeeze(1)
    end = int(rows[-1]) + 1 if len(rows) else len(weights)
    packed = Packed.tree([tokens[:end]], samples=sample.id)
    targets = Targets(rows, tokens[1:][rows], weights[rows])
    return Batch(packed, targets, num_bytes=sample.num_bytes if len(rows) else 0.0, origin=(sample.origin,))
