"""KTO: answers judged one by one, as gains and losses against what the policy has moved on the whole.

    r(x, y) = log [ p(y | x) / p_ref(y | x) ],   z = max(0, mean of r(x, y') over answers y' to other prompts)
    loss = w_desirable (1 - sigmoid(beta (r - z)))   of a desirable answer
           w_undesirable (1 - sigmoid(beta (z - r)))  of an undesirable one

z estimates KL(p || p_ref) from mismatched pairs: each of an update's prompts is given the answers of the prompt before
it. It is taken over the whole update before any loss is, so it does not depend on how the update is cut up, and no
gradient goes through it.

References:
    Ethayarajh et al., 2024, "KTO: model alignment as prospect theoretic optimization",
    https://arxiv.org/abs/2402.01306
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from danlu.batch import Answers, Batch
from danlu.contracts import Outcome, Terms, Way
from danlu.errors import DataError
from danlu.method.preference import Answer, Preference, answers_group, answers_of, reference_sums, sequences_of
from danlu.registry import export

_JUDGED = ("reward_desirable", "log_prob_desirable"), ("reward_undesirable", "log_prob_undesirable")


@dataclass(frozen=True)
class Mismatched:
    """A sample, and the answers to another prompt.

    Attributes:
        own: the sample.
        others: as many answers as it has.
    """

    own: Answers
    others: Sequence[Answer]


@export("method", "kto", source="Ethayarajh et al., 2024, https://arxiv.org/abs/2402.01306")
class KTO(Preference):
    """Kahneman-Tversky optimisation: desirable and undesirable answers, each by itself; a pair is one of each."""

    goal: ClassVar[str] = "preference alignment"
    mechanism: ClassVar[str] = "prospect theory"
    roles: ClassVar[tuple[str, ...]] = ("policy", "reference")
    estimating: ClassVar[bool] = True

    beta: float = Field(0.1, gt=0)
    """How firmly the policy is held to the reference."""
    desirable_weight: float = Field(1.0, ge=0)
    """Of desirable answers; times their number it should be about that of the others'."""
    undesirable_weight: float = Field(1.0, ge=0)
    """Of undesirable answers."""
    reference: Literal["auto", "model"] = "auto"
    """How the reference's log-probabilities are had: `model` asks a second model, `auto` is the policy with its adapter
    switched off where it has one, else model."""

    @property
    def asks(self) -> Mapping[str, Way]:
        """See `Method`."""
        return {"reference": self.reference}

    def matched(self, samples: Sequence[Any]) -> Sequence[Any]:
        """Each with the answers to the prompt before it, the first with the last one's; one sample alone with none.

        An answer that would make a longer sequence than any of the update's is cut there.
        """
        answers = [answers_of(sample) for sample in samples]
        if len(samples) < 2:
            return samples
        pairs = list(zip(samples, answers, strict=True))
        longest = max(len(sample.prompt) + max(len(a.tokens) for a in own) for sample, own in pairs)
        return [
            Mismatched(sample, _cut(answers[i - 1], len(own), longest - len(sample.prompt)))
            for i, (sample, own) in enumerate(pairs)
        ]

    def size(self, sample: Any) -> int:
        """See `Method`."""
        if not isinstance(sample, Mismatched):
            return super().size(sample)
        return super().size(sample.own) + sum(len(answer.tokens) for answer in sample.others)

    def group(self, sample: Any) -> Batch:
        """The answers behind their prompt; beside them, the same prompt with those that are not its own."""
        own = sample.own if isinstance(sample, Mismatched) else sample
        answers, judged = answers_of(own), _judged(own)
        group = answers_group(own, answers, {"desirable": judged}, share_prompt=self.share_prompt)
        if not isinstance(sample, Mismatched):
            return group
        return replace(group, beside=answers_group(own, sample.others, {}, share_prompt=self.share_prompt))

    def counts(self, batch: Batch) -> dict[str, float]:
        """Answers, those of each kind, and mismatched ones."""
        sequences = sequences_of(batch)
        desirable = float(sequences.values["desirable"].sum()) if sequences.num else 0.0
        kinds = zip(_JUDGED, (desirable, sequences.num - desirable), strict=True)
        beside = 0 if batch.beside is None else sequences_of(batch.beside).num
        return {"kto": float(sequences.num), "kl": float(beside)} | {n: count for names, count in kinds for n in names}

    def estimates(self, models: Mapping[str, nn.Module], batch: Batch) -> Terms:
        """The mismatched answers' log-ratios."""
        return {"kl": self._ratios(models, batch.beside or Batch.join([]).to(batch.targets.rows.device))[0].sum()}

    def loss(self, models: Mapping[str, nn.Module], batch: Batch) -> Outcome:
        """The answers' losses."""
        ratios, sums = self._ratios(models, batch)
        z = max(0.0, batch.estimates.get("kl", 0.0))
        desirable = sequences_of(batch).values.get("desirable", ratios.new_zeros(0)).to(ratios.dtype)
        weights = self.desirable_weight * desirable + self.undesirable_weight * (1 - desirable)
        gain = (ratios - z) * (2 * desirable - 1)
        losses = {"kto": (weights * (1 - (self.beta * gain).sigmoid())).sum()}
        rewards, mismatched = self.beta * ratios.detach(), self.counts(batch)["kl"]
        metrics = {"kl": ratios.new_tensor(z * mismatched)}
        for names, kind in zip(_JUDGED, (desirable, 1 - desirable), strict=True):
            metrics |= {name: (kind * of).sum() for name, of in zip(names, (rewards, sums.detach()), strict=True)}
        return Outcome(losses, metrics)

    def summarize(self, averages: Mapping[str, float]) -> dict[str, float]:
        """Adds the margin between the two kinds' rewards, where there were both."""
        told = super().summarize(averages)
        if {"reward_desirable", "reward_undesirable"} <= told.keys():
            told["margin"] = told["reward_desirable"] - told["reward_undesirable"]
        return told

    def _ratios(self, models: Mapping[str, nn.Module], batch: Batch) -> tuple[Tensor, Tensor]:
        """Each answer's log-ratio, and its log-probability."""
        sums = sequences_of(batch).sums(self.log_probs(models["policy"], batch))
        return sums - reference_sums(models, batch).to(sums.dtype), sums


def _judged(sample: Answers) -> list[float]:
    """1 for each desirable answer, 0 for the others; of a pair the first is.

    Raises:
        DataError: when it is not told.
    """
    judged = sample.values.get("desirable")
    if judged is None and len(sample.answers) == 2:
        return [1.0, 0.0]
    if judged is None or len(judged) != len(sample.answers) or not {float(value) for value in judged} <= {0.0, 1.0}:
        what = f"of {len(sample.answers)} answers it is not told which are desirable"
        do = "Give each a label that is true or false, or pairs of a chosen and a rejected answer."
        raise DataError(what, where=sample.origin, do=do)
    return [float(value) for value in judged]


def _cut(answers: Sequence[Answer], count: int, longest: int) -> list[Answer]:
    """So many of some answers, the first once more where they are fewer, none longer than that."""
    taken = [answers[number % len(answers)] for number in range(count)]
    return [Answer(answer.tokens[:longest], answer.weights[:longest]) for answer in taken]
