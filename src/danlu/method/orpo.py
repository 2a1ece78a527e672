"""ORPO: supervised fine-tuning on chosen answers, and a penalty by the odds of chosen against rejected ones.

    odds(y) = p / (1 - p),   log p = log p(y | x) / |y|
    loss = - log-likelihood a token of prompt and chosen answer - weight log sigmoid(log odds(y_w) - log odds(y_l))

References:
    Hong, Lee and Thorne, 2024, "ORPO: monolithic preference optimization without reference model",
    https://arxiv.org/abs/2403.07691
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.batch import Answers, Batch, Sequences
from danlu.contracts import Outcome
from danlu.method.preference import PAIRED, PairPreference, compared, lengths_of, of_pairs, sequences_of
from danlu.packed import Targets
from danlu.registry import export


@export("method", "orpo", source="Hong, Lee and Thorne, 2024, https://arxiv.org/abs/2403.07691")
class ORPO(PairPreference):
    """Odds-ratio preference optimisation: fine-tuning on chosen answers, with a penalty by the odds; no reference."""

    goal: ClassVar[str] = "preference alignment"
    mechanism: ClassVar[str] = "pairwise contrast"

    weight: float = Field(0.1, gt=0)
    """Of the odds; the paper's lambda."""
    learn_prompt: bool = True
    """Whether a prompt's tokens are learned with the chosen answer's, as in the authors' code."""

    @property
    def _of_each(self) -> int:
        """Sequences of a pair: chosen, rejected, and the prompt where it is learned."""
        return 3 if self.learn_prompt else 2

    def group(self, sample: Answers) -> Batch:
        """Both answers behind their prompt, whose tokens are targets, too."""
        group = super().group(sample)
        if not self.learn_prompt:
            return group
        tokens = torch.as_tensor(sample.prompt, dtype=torch.int64)[1:]
        prompt = Targets(torch.arange(len(tokens)), tokens, torch.ones(len(tokens)))
        whose = torch.cat([sequences_of(group).of_target, torch.full((len(tokens),), 2)])
        return replace(group, targets=Targets.join([group.targets, prompt], [0, 0]), sequences=Sequences(whose, {}, 3))

    def counts(self, batch: Batch) -> dict[str, float]:
        """Pairs; of the likelihood, tokens of chosen answers, and of prompts where these are learned."""
        pairs = dict.fromkeys(("orpo", "log_odds", *PAIRED), sequences_of(batch).num / self._of_each)
        return pairs | {"nll": float((batch.targets.weights * self._learned(batch)).sum())}

    def loss(self, models: Mapping[str, nn.Module], batch: Batch) -> Outcome:
        """The likelihood, and the pairs' odds."""
        each = self.log_probs(models["policy"], batch)
        sums = self._answers(sequences_of(batch).sums(each))
        mean = sums / self._answers(lengths_of(batch))
        chosen, rejected = of_pairs(mean - _log_rest(mean))
        losses = {
            "nll": -(each * self._learned(batch)).sum(),
            "orpo": -self.weight * F.logsigmoid(chosen - rejected).sum(),
        }
        metrics = compared(self.weight * mean, sums) | {"log_odds": (chosen - rejected).detach().sum()}
        return Outcome(losses, metrics | {"nll": losses["nll"].detach()})

    def _answers(self, values: Float[Tensor, " S"]) -> Float[Tensor, " A"]:
        """Those of chosen and rejected answers, in turns."""
        return values.view(-1, self._of_each)[:, :2].flatten()

    def _learned(self, batch: Batch) -> Float[Tensor, " M"]:
        """1 for each target that is learned: all but the rejected answers'."""
        return (sequences_of(batch).of_target % self._of_each != 1).float()


def _log_rest(log_p: Float[Tensor, " S"]) -> Float[Tensor, " S"]:
    """log(1 - p), exact where p is near 0 or 1; short of p = 1, where it has no end."""
    log_p = log_p.clamp(max=-torch.finfo(log_p.dtype).eps)
    near_one = log_p > -0.693
    return torch.where(
        near_one,
        (-log_p.where(near_one, -0.5).expm1()).log(),
        (-log_p.where(~near_one, -1.0).exp()).log1p(),
    )
