"""Answers to a prompt as a forest, and what methods that compare them have in common.

A prompt is the root, each of its answers a child: the prompt is computed once, whatever the number of answers, and its
last row predicts the first token of each. Repeating the prompt for every answer gives the same numbers, dropout too,
since random keys follow a sample's places.

References:
    Wang and Hegde, 2024, "Accelerating direct preference optimization with prefix sharing",
    https://arxiv.org/abs/2410.20305
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from danlu.batch import Answers, Batch, Sequences
from danlu.contracts import SequenceMethod, Terms
from danlu.errors import DataError
from danlu.packed import ROOT, Packed, Targets
from danlu.parts.readout import LogProbs
from danlu.registry import name_of


@dataclass(frozen=True)
class Answer:
    """An answer's tokens, and how much each counts."""

    tokens: Int[Tensor, " n"]
    weights: Float[Tensor, " n"]

    @staticmethod
    def of(tokens: Any, weights: Any) -> Answer:
        """From arrays; no weights are one for all."""
        ids = torch.as_tensor(tokens, dtype=torch.int64)
        return Answer(ids, torch.ones(len(ids)) if weights is None else torch.as_tensor(weights, dtype=torch.float32))

    @property
    def needed(self) -> int:
        """How many of its tokens are seen by what predicts a token that counts."""
        counting = self.weights.nonzero()
        return int(counting[-1]) if len(counting) else 0


def answers_of(sample: Answers) -> list[Answer]:
    """A sample's answers.

    Raises:
        DataError: when there is no prompt or no answer, or one without tokens.
    """
    if not len(sample.prompt):
        do = "Begin prompts with the tokenizer's first token, or leave the sample out."
        raise DataError("the prompt has no tokens, so nothing predicts an answer's first", where=sample.origin, do=do)
    if not len(sample.answers) or any(not len(answer) for answer in sample.answers):
        what = "an answer has no tokens" if len(sample.answers) else "the prompt has no answer"
        raise DataError(what, where=sample.origin, do="Leave the sample out.")
    weights = [None] * len(sample.answers) if sample.weights is None else sample.weights
    return [Answer.of(answer, weighed) for answer, weighed in zip(sample.answers, weights, strict=True)]


def pair_of(sample: Answers, method: SequenceMethod) -> list[Answer]:
    """The chosen and the rejected answer.

    Raises:
        DataError: when it is no pair.
    """
    answers, judged = answers_of(sample), [float(value) for value in sample.values.get("desirable", (1, 0))]
    name = name_of(type(method))
    if len(answers) != 2:
        what = f"{name} learns from pairs, and this prompt has {len(answers)} answer{'s' * (len(answers) > 1)}"
        do = "Give a chosen and a rejected answer, or learn from answers judged one by one: method=kto."
        raise DataError(what, where=sample.origin, do=do)
    if judged != [1, 0]:
        what = f"{name} learns from pairs of a chosen and a rejected answer, and these two are judged {judged}"
        raise DataError(what, where=sample.origin, do="Learn from answers judged one by one: method=kto.")
    return answers


@dataclass(frozen=True)
class Forest:
    """Some answers behind their prompt.

    Attributes:
        packed: the forest.
        before: the row that predicts each answer's first token.
        starts: the row of each answer's first token, where it has rows.
    """

    packed: Packed
    before: Sequence[int]
    starts: Sequence[int]

    @staticmethod
    def of(prompt: Tensor, answers: Sequence[Tensor], *, sample: int, share_prompt: bool) -> Forest:
        """Answers, of which some may have no rows, as children of one prompt or each behind a prompt of its own."""
        if share_prompt:
            starts = list(accumulate((len(answer) for answer in answers), initial=len(prompt)))[:-1]
            children = [answer for answer in answers if len(answer)]
            parents = [ROOT, *(0 for _ in children)]
            packed = Packed.tree([prompt, *children], parents=parents, samples=sample)
            return Forest(packed, [len(prompt) - 1] * len(answers), starts)
        paths = [torch.cat([prompt, answer]) for answer in answers]
        begins = list(accumulate((len(path) for path in paths), initial=0))[:-1]
        starts = [begin + len(prompt) for begin in begins]
        packed = Packed.tree(paths, parents=[ROOT] * len(paths), samples=sample)
        return Forest(packed, [start - 1 for start in starts], starts)

    def targets(self, number: int, answer: Answer) -> Targets:
        """An answer's tokens that count, each with the row before it."""
        rows = torch.cat([torch.tensor([self.before[number]]), self.starts[number] + torch.arange(answer.needed)])
        counting = answer.weights[: len(rows)].nonzero().squeeze(1)
        return Targets(rows[counting], answer.tokens[counting], answer.weights[counting])


def answers_group(
    sample: Answers,
    answers: Sequence[Answer],
    values: Mapping[str, Sequence[float]],
    *,
    share_prompt: bool = True,
) -> Batch:
    """A prompt's answers as one group, each a sequence whose targets are its tokens.

    Args:
        sample: what they are of.
        answers: its answers, or others.
        values: of each answer, by name.
        share_prompt: whether the prompt is computed once.
    """
    prompt = torch.as_tensor(sample.prompt, dtype=torch.int64)
    held = [answer.tokens[: answer.needed] for answer in answers]
    forest = Forest.of(prompt, held, sample=sample.id, share_prompt=share_prompt)
    targets = [forest.targets(number, answer) for number, answer in enumerate(answers)]
    of_target = torch.cat([torch.full((len(each),), number) for number, each in enumerate(targets)])
    numbers = {name: torch.tensor([float(value) for value in each]) for name, each in values.items()}
    return Batch(
        forest.packed,
        Targets.join(targets, [0] * len(targets)),
        num_bytes=sample.num_bytes,
        origin=(sample.origin,),
        sequences=Sequences(of_target, numbers, len(answers)),
    )


class Preference(SequenceMethod, ABC):
    """What methods that learn from answers have in common."""

    learns_from: ClassVar[Literal["sequence", "answers"]] = "answers"
    by_sequence: ClassVar[bool] = True

    share_prompt: bool = True
    """Compute a prompt once for all its answers; false repeats it for each, which gives the same and takes longer."""
    dropout: bool = False
    """Whether what is trained drops activations, where its architecture does while training."""

    def size(self, sample: Any) -> int:
        """See `Method`; known without making the group."""
        prompts = 1 if self.share_prompt else len(sample.answers)
        return prompts * len(sample.prompt) + sum(len(answer) for answer in sample.answers)

    def rows(self, batch: Batch) -> Packed:
        """A pack as the trained model is to see it."""
        return batch.packed if self.dropout else replace(batch.packed, keys=None)

    def log_probs(self, policy: nn.Module, batch: Batch) -> Float[Tensor, " M"]:
        """The trained model's log-probability of each target, times its weight."""
        (each,) = policy(self.rows(batch), [LogProbs(batch.targets)])
        return each * batch.targets.weights

    def summarize(self, averages: Mapping[str, float]) -> dict[str, float]:
        """The averages as they are."""
        return dict(averages)


PAIRED = ("accuracy", "margin", "reward_chosen", "reward_rejected", "log_prob_chosen", "log_prob_rejected")
"""What is measured of every pair."""


class PairPreference(Preference, ABC):
    """What methods that learn from pairs have in common: sequences are a chosen one, its rejected one, and so on."""

    def group(self, sample: Answers) -> Batch:
        """Both answers behind their prompt."""
        values = {"reference": sample.values["reference"]} if "reference" in sample.values else {}
        return answers_group(sample, pair_of(sample, self), values, share_prompt=self.share_prompt)

    def counts(self, batch: Batch) -> dict[str, float]:
        """Pairs."""
        return dict.fromkeys((name_of(type(self)), *PAIRED), sequences_of(batch).num / 2)


def sequences_of(batch: Batch) -> Sequences:
    """A pack's sequences; an empty pack has none."""
    if batch.sequences is not None:
        return batch.sequences
    return Sequences(batch.targets.rows.new_zeros(0), {}, 0)


def reference_sums(models: Mapping[str, nn.Module], batch: Batch) -> Float[Tensor, " S"]:
    """Each sequence's log-probability by the reference: as it was computed beforehand, or by asking it, undropped."""
    sequences = sequences_of(batch)
    if "reference" in sequences.values:
        return sequences.values["reference"]
    with torch.no_grad():
        (each,) = models["reference"](replace(batch.packed, keys=None), [LogProbs(batch.targets)])
    return sequences.sums(each * batch.targets.weights)


def lengths_of(batch: Batch) -> Float[Tensor, " S"]:
    """How many tokens each sequence has, by weight; 1 for one of which none counts."""
    counted = sequences_of(batch).sums(batch.targets.weights)
    return counted.where(counted > 0, 1.0)


def of_pairs(values: Float[Tensor, " S"]) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """The chosen answers' and the rejected ones'."""
    return values[0::2], values[1::2]


def compared(rewards: Float[Tensor, " S"], log_probs: Float[Tensor, " S"]) -> Terms:
    """The sums of `PAIRED`."""
    (chosen, rejected), (likely, unlikely) = of_pairs(rewards.detach()), of_pairs(log_probs.detach())
    margin = chosen - rejected
    each = ((margin > 0).to(margin.dtype), margin, chosen, rejected, likely, unlikely)
    return {name: value.sum() for name, value in zip(PAIRED, each, strict=True)}


def chosen_only(batch: Batch) -> Float[Tensor, " M"]:
    """1 for each target of a chosen answer, 0 for the others."""
    return (sequences_of(batch).of_target % 2 == 0).float()
