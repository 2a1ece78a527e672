"""Maximum likelihood of the next token.

    loss = - sum_i w_i log p(x_i | x_1 .. x_{i-1}),   p(x_i | x_<i) = softmax(E phi(x_<i))

divided once by the sum of the weights over the whole update.

References:
    Bengio et al., 2003, "A neural probabilistic language model", https://www.jmlr.org/papers/v3/bengio03a.html
    Radford et al., 2018, "Improving language understanding by generative pre-training",
    https://openai.com/index/language-unsupervised/
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from pydantic import Field
from torch import nn

from danlu.contracts import Batch, Method, Outcome, Sample
from danlu.packed import Packed, Targets
from danlu.parts.readout import Likelihood
from danlu.registry import export


@export("method", "next_token", source="Bengio et al., 2003, https://www.jmlr.org/papers/v3/bengio03a.html")
class NextToken(Method):
    """Maximum likelihood of each token given those before it."""

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Probability spread evenly over the vocabulary; 0 is plain maximum likelihood."""
    z_loss: float = Field(0.0, ge=0)
    """Weight of the squared log-normaliser, which keeps it near 0; 1e-4 is usual."""

    def group(self, sample: Sample) -> Batch:
        """One causal segment; row i predicts token i + 1."""
        tokens = torch.from_numpy(sample.tokens)
        packed = Packed.tree([tokens[:-1]], samples=sample.id)
        targets = Targets(torch.arange(len(packed)), tokens[1:], torch.ones(len(packed)))
        return Batch(packed, targets, num_bytes=sample.num_bytes, origin=(sample.origin,))

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
