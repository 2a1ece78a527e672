"""Direct preference optimisation: pairs as a classification by the policy's own likelihood, against a reference.

    r(y) = beta log [ p(y | x) / p_ref(y | x) ],   d = log-ratio of the chosen - log-ratio of the rejected answer
    loss = - log sigmoid(beta d)

`ipo` is (d - 1 / (2 beta))^2 on log-ratios a token, `hinge` max(0, 1 - beta d). With `label_smoothing` e the chance
that a pair is labelled the wrong way round is taken to be e: `sigmoid` mixes the losses of both labels (conservative
DPO), `robust` takes their mix without its bias.

References:
    Rafailov et al., 2023, "Direct preference optimization", https://arxiv.org/abs/2305.18290
    Azar et al., 2023, "A general theoretical paradigm to understand learning from human preferences" (ipo),
    https://arxiv.org/abs/2310.12036
    Zhao et al., 2023, "SLiC-HF" (hinge), https://arxiv.org/abs/2305.10425
    Chowdhury, Kini and Natarajan, 2024, "Provably robust DPO", https://arxiv.org/abs/2403.00409
    Pang et al., 2024, "Iterative reasoning preference optimization" (sft_weight), https://arxiv.org/abs/2404.19733
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.batch import Batch
from danlu.contracts import Outcome, Way
from danlu.method.preference import (
    PairPreference,
    chosen_only,
    compared,
    lengths_of,
    of_pairs,
    reference_sums,
    sequences_of,
)
from danlu.registry import export


@export("method", "dpo", source="Rafailov et al., 2023, https://arxiv.org/abs/2305.18290")
class DPO(PairPreference):
    """Direct preference optimisation: the likelihood of a pair's chosen answer against its rejected one's."""

    goal: ClassVar[str] = "preference alignment"
    mechanism: ClassVar[str] = "pairwise contrast"
    roles: ClassVar[tuple[str, ...]] = ("policy", "reference")

    beta: float = Field(0.1, gt=0)
    """How firmly the policy is held to the reference; of ipo, tau."""
    loss_type: Literal["sigmoid", "robust", "hinge", "ipo"] = "sigmoid"
    """What is made of the difference of log-ratios; ipo takes these a token."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """The share of pairs that are taken to be labelled the wrong way round (sigmoid, robust)."""
    length_normalised: bool = False
    """Take log-ratios a token instead of an answer."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of the chosen answers' negative log-likelihood, a token, beside the loss."""
    reference_free: bool = False
    """Compare with nothing: the reference likes all answers alike."""
    reference: Way = "auto"
    """How the reference's log-probabilities are had: `model` asks a second model, `precomputed` asks it once for all
    data before the run and keeps the answers in the data's cache, `auto` is the policy with its adapter switched off
    where it has one, else model."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.label_smoothing and self.loss_type in ("hinge", "ipo"):
            raise ValueError(f"label_smoothing is of sigmoid and robust: {self.loss_type} has none")
        if self.reference_free and self.reference != "auto":
            raise ValueError(f"reference is {self.reference}, and reference_free asks for none: set one of them")
        return self

    @property
    def asks(self) -> Mapping[str, Way]:
        """See `Method`: the reference, unless there is none."""
        return {} if self.reference_free else {"reference": self.reference}

    def counts(self, batch: Batch) -> dict[str, float]:
        """Pairs; of the likelihood, tokens of chosen answers."""
        pairs = super().counts(batch)
        if not self.sft_weight:
            return pairs
        tokens = float((batch.targets.weights * chosen_only(batch)).sum())
        return pairs | {"sft": tokens, "nll": tokens}

    def loss(self, models: Mapping[str, nn.Module], batch: Batch) -> Outcome:
        """The pairs' losses."""
        each = self.log_probs(models["policy"], batch)
        sums = sequences_of(batch).sums(each)
        ratios = sums if self.reference_free else sums - reference_sums(models, batch).to(sums.dtype)
        if self.length_normalised or self.loss_type == "ipo":
            ratios = ratios / lengths_of(batch)
        chosen, rejected = of_pairs(ratios)
        losses = {"dpo": self._losses(chosen - rejected).sum()}
        metrics = compared(self.beta * ratios, sums)
        if self.sft_weight:
            nll = -(each * chosen_only(batch)).sum()
            losses, metrics = losses | {"sft": self.sft_weight * nll}, metrics | {"nll": nll.detach()}
        return Outcome(losses, metrics)

    def _losses(self, d: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        match self.loss_type:
            case "hinge":
                return (1 - self.beta * d).relu()
            case "ipo":
                return (d - 1 / (2 * self.beta)).square()
        e, right, wrong = self.label_smoothing, -F.logsigmoid(self.beta * d), -F.logsigmoid(-self.beta * d)
        if self.loss_type == "robust":
            return ((1 - e) * right - e * wrong) / (1 - 2 * e)
        return (1 - e) * right + e * wrong
