"""SimPO: DPO without a reference, its reward the log-probability a token.

    loss = - log sigmoid(beta [log p(y_w | x) / |y_w| - log p(y_l | x) / |y_l|] - gamma)

References:
    Meng, Xia and Chen, 2024, "SimPO", https://arxiv.org/abs/2405.14734
    Xu et al., 2024, "Contrastive preference optimization" (sft_weight), https://arxiv.org/abs/2401.08417
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field
from torch import nn
from torch.nn import functional as F

from danlu.batch import Batch
from danlu.contracts import Outcome
from danlu.method.preference import PairPreference, chosen_only, compared, lengths_of, of_pairs, sequences_of
from danlu.registry import export


@export("method", "simpo", source="Meng, Xia and Chen, 2024, https://arxiv.org/abs/2405.14734")
class SimPO(PairPreference):
    """Simple preference optimisation: log-probabilities a token, a margin between them, no reference."""

    goal: ClassVar[str] = "preference alignment"
    mechanism: ClassVar[str] = "pairwise contrast"

    beta: float = Field(2.0, gt=0)
    """How much a nat a token is worth."""
    gamma: float = Field(1.0, ge=0)
    """By how much a chosen answer's reward is to exceed a rejected one's."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """The share of pairs that are taken to be labelled the wrong way round."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of the chosen answers' negative log-likelihood, a token, beside the loss."""

    def counts(self, batch: Batch) -> dict[str, float]:
        """Pairs; of the likelihood, tokens of chosen answers."""
        tokens = float((batch.targets.weights * chosen_only(batch)).sum())
        return super().counts(batch) | {"sft": tokens, "nll": tokens}

    def loss(self, models: Mapping[str, nn.Module], batch: Batch) -> Outcome:
        """The pairs' losses."""
        each = self.log_probs(models["policy"], batch)
        sums = sequences_of(batch).sums(each)
        rewards = self.beta * sums / lengths_of(batch)
        chosen, rejected = of_pairs(rewards)
        d, e = chosen - rejected - self.gamma, self.label_smoothing
        losses = {"simpo": -((1 - e) * F.logsigmoid(d) + e * F.logsigmoid(-d)).sum()}
        nll = -(each * chosen_only(batch)).sum()
        if self.sft_weight:
            losses["sft"] = self.sft_weight * nll
        return Outcome(losses, compared(rewards, sums) | {"nll": nll.detach()})
