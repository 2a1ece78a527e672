"""Maximum likelihood of the next token: every token is learned, whoever wrote it.

References:
    Bengio et al., 2003, "A neural probabilistic language model", https://www.jmlr.org/papers/v3/bengio03a.html
    Radford et al., 2018, "Improving language understanding by generative pre-training",
    https://openai.com/index/language-unsupervised/
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch

from danlu.batch import Batch, Sample
from danlu.method.likelihood import MaximumLikelihood, causal_group
from danlu.registry import export


@export("method", "next_token", source="Bengio et al., 2003, https://www.jmlr.org/papers/v3/bengio03a.html")
class NextToken(MaximumLikelihood):
    """Maximum likelihood of each token given those before it."""

    goal: ClassVar[str] = "language modelling"
    mechanism: ClassVar[str] = "maximum likelihood"

    def group(self, sample: Sample) -> Batch:
        """One causal segment, all of whose tokens but the first are learned."""
        group = causal_group(sample, torch.ones(len(sample.tokens) - 1))
        if sample.weights is None:
            return group
        share = float((sample.weights > 0).mean())  # its bytes are of those that have a weight
        return replace(group, num_bytes=sample.num_bytes / share if share else 0.0)
