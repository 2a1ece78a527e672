"""A reward model: one score for a prompt and its answer, such that differences predict which answer is preferred.

    P(chosen > rejected) = sigmoid(r_chosen - r_rejected)                             (Bradley and Terry)
    loss = - log sigmoid(r_chosen - r_rejected - margin) + c (r_chosen + r_rejected)^2

The score is read at an answer's last token, by a linear head in place of the one over tokens. While measuring, pairs
are sorted by how sure the model is, max(P, 1 - P): where it is calibrated, the share of pairs that it gets right in
each bin is as large as it says.

References:
    Bradley and Terry, 1952, "Rank analysis of incomplete block designs", https://doi.org/10.1093/biomet/39.3-4.324
    Ouyang et al., 2022, "Training language models to follow instructions with human feedback",
    https://arxiv.org/abs/2203.02155
    Touvron et al., 2023, "Llama 2" (margin), https://arxiv.org/abs/2307.09288
    Eisenstein et al., 2023, "Helping or herding?" (centring), https://arxiv.org/abs/2312.09244
    Guo et al., 2017, "On calibration of modern neural networks", https://arxiv.org/abs/1706.04599
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.batch import Answers, Batch, Sequences
from danlu.contracts import Outcome, Terms
from danlu.method.preference import Forest, Preference, of_pairs, pair_of, sequences_of
from danlu.packed import Targets
from danlu.parts.readout import Values
from danlu.registry import export

BINS = 10
"""Of the calibration curve: as wide as each other, from a half to one."""
_MEASURED = ("accuracy", "margin", "reward_chosen", "reward_rejected", "reward_squared")
_BINNED = tuple(f"calibration_{number}_{of}" for number in range(BINS) for of in ("share", "confidence", "agreement"))


@export("method", "reward", source="Ouyang et al., 2022, https://arxiv.org/abs/2203.02155")
class Reward(Preference):
    """Reward model: a score for each answer, whose differences predict which of a pair is preferred."""

    goal: ClassVar[str] = "reward modelling"
    mechanism: ClassVar[str] = "pairwise contrast"
    scoring: ClassVar[bool] = True

    margin: bool = True
    """Whether a pair that comes with a margin is to differ by more than that."""
    centring: float = Field(0.0, ge=0)
    """Weight of the squared sum of a pair's scores, which keeps their mean at 0; 0.01 is usual."""

    def group(self, sample: Answers) -> Batch:
        """Both answers behind their prompt, the last token of each a target: that is where it is scored."""
        answers = pair_of(sample, self)
        prompt = torch.as_tensor(sample.prompt, dtype=torch.int64)
        tokens = [answer.tokens for answer in answers]
        forest = Forest.of(prompt, tokens, sample=sample.id, share_prompt=self.share_prompt)
        last = [start + len(answer) - 1 for start, answer in zip(forest.starts, tokens, strict=True)]
        targets = Targets(torch.tensor(last), torch.stack([answer[-1] for answer in tokens]), torch.ones(2))
        margin = float(sample.values["margin"][0]) if self.margin and "margin" in sample.values else 0.0
        values = {"margin": torch.tensor([margin, margin])}
        sequences = Sequences(torch.arange(2), values, 2)
        return Batch(forest.packed, targets, num_bytes=sample.num_bytes, origin=(sample.origin,), sequences=sequences)

    def counts(self, batch: Batch) -> dict[str, float]:
        """Pairs."""
        return dict.fromkeys(("reward", "centring", *_MEASURED, *_BINNED), sequences_of(batch).num / 2)

    def loss(self, models: Mapping[str, nn.Module], batch: Batch) -> Outcome:
        """The pairs' losses; while measuring, how sure the model is, and how often right."""
        policy, sequences = models["policy"], sequences_of(batch)
        (scores,) = policy(self.rows(batch), [Values(batch.targets.rows)])
        chosen, rejected = of_pairs(scores)
        margin = sequences.values.get("margin", scores.new_zeros(0)).to(scores.dtype)[0::2]
        losses = {"reward": -F.logsigmoid(chosen - rejected - margin).sum()}
        if self.centring:
            losses["centring"] = self.centring * (chosen + rejected).square().sum()
        metrics = _measured(chosen.detach(), rejected.detach())
        return Outcome(losses, metrics if policy.training else metrics | _calibration((chosen - rejected).detach()))

    def summarize(self, averages: Mapping[str, float]) -> dict[str, float]:
        """Adds the expected calibration error: by how much confidence and agreement differ, over all bins."""
        told: dict[str, Any] = super().summarize(averages)
        told["reward_deviation"] = max(0.0, told["reward_squared"] - _mean(told) ** 2) ** 0.5
        if _BINNED[0] in told:
            bins = (f"calibration_{number}" for number in range(BINS))
            told["calibration_error"] = sum(abs(told[f"{b}_confidence"] - told[f"{b}_agreement"]) for b in bins)
        return told


def _mean(told: Mapping[str, float]) -> float:
    return (told["reward_chosen"] + told["reward_rejected"]) / 2


def _measured(chosen: Float[Tensor, " N"], rejected: Float[Tensor, " N"]) -> Terms:
    margin = chosen - rejected
    squared = (chosen.square() + rejected.square()) / 2
    each = ((margin > 0).to(margin.dtype), margin, chosen, rejected, squared)
    return {name: value.sum() for name, value in zip(_MEASURED, each, strict=True)}


def _calibration(margin: Float[Tensor, " N"]) -> Terms:
    """Of each bin of confidence: how many pairs are in it, how sure the model is of them, how many it gets right."""
    confidence = margin.abs().sigmoid()
    held = ((confidence - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    right = (margin > 0).to(margin.dtype)
    sums = [of.new_zeros(BINS).index_add(0, held, of) for of in (torch.ones_like(margin), confidence, right)]
    return dict(zip(_BINNED, torch.stack(sums, 1).flatten().unbind(), strict=True))
