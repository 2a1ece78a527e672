"""Supervised fine-tuning: maximum likelihood of answers given what was asked.

    loss = - sum_i w_i log p(x_i | x_1 .. x_{i-1}),   w_i > 0 only in what is to be learned

Which tokens these are comes with the data: an assistant's messages with the tokens that end its turns, a completion
behind its prompt, all of a plain text (`data.train_on`). Every other token is context, and costs no head.

References:
    Ouyang et al., 2022, "Training language models to follow instructions with human feedback",
    https://arxiv.org/abs/2203.02155
"""

from __future__ import annotations

from typing import ClassVar

import torch

from danlu.batch import Batch, Sample
from danlu.method.likelihood import MaximumLikelihood, causal_group
from danlu.registry import export


@export("method", "sft", source="Ouyang et al., 2022, https://arxiv.org/abs/2203.02155")
class SFT(MaximumLikelihood):
    """Maximum likelihood of the parts of a sample that are to be learned, given all before them."""

    goal: ClassVar[str] = "instruction tuning"
    mechanism: ClassVar[str] = "maximum likelihood"

    def group(self, sample: Sample) -> Batch:
        """One causal segment, whose learned tokens are learned."""
        if sample.weights is None:
            return causal_group(sample, torch.ones(len(sample.tokens) - 1))
        return causal_group(sample, torch.from_numpy(sample.weights))
