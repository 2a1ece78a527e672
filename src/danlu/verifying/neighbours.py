"""The check that samples in one pack see nothing of each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from danlu.batch import Batch
from danlu.packed import Packed, Targets
from danlu.parts.readout import LogProbs, Values
from danlu.verifying.subject import Subject
from danlu.verifying.tolerances import SAME_SUMS
from danlu.verifying.verdict import Inapplicable, Measured, check, size


@check("no leak between neighbours")
def no_leak(subject: Subject) -> Measured:
    """Another sample's tokens, or its length, change no log-probability or score of a sample in the same pack."""
    groups = list(subject.groups)
    if len(groups) < 2:
        raise Inapplicable("The data have a single sample, which has no neighbours.")
    vocabulary = subject.policy.config.vocabulary
    expected = _values(subject, groups)
    found = [(0.0, "", "")]
    for i in sorted({0, len(groups) // 2, len(groups) - 1}):
        for what, other in (
            ("other tokens", _reworded(groups[i], vocabulary)),
            ("another length", _shortened(groups[i])),
        ):
            now = _values(subject, [*groups[:i], other, *groups[i + 1 :]])
            error = max(_error(now[j], expected[j]) for j in range(len(groups)) if j != i)
            found.append((error, what, ", ".join(groups[i].origin)))
    error, what, where = max(found, key=lambda each: size(each[0]))
    count, values = sum(len(group.targets) for group in groups), "scores" if subject.scores else "log-probabilities"
    fault = f"With {what} of {where} the {values} of other samples in its pack change.{subject.coupling}"
    return Measured(f"{count:,} {values}, {len(found) - 1} changed neighbours", error, SAME_SUMS, fault)


@torch.no_grad()
def _values(subject: Subject, groups: Sequence[Batch]) -> list[Tensor]:
    """The log-probability or score of every target in one pack, as while training, of each group its own."""
    subject.policy.train()
    batch = subject.keyed(Batch.join([replace(group, sequences=None, beside=None) for group in groups]))
    asked = Values(batch.targets.rows) if subject.scores else LogProbs(batch.targets)
    (values,) = subject.policy(batch.packed, [asked])
    return list(values.split([len(group.targets) for group in groups]))


def _reworded(group: Batch, vocabulary: int) -> Batch:
    """The same forest, every token another."""
    tokens = (group.packed.tokens + max(1, vocabulary // 2)) % vocabulary
    return replace(group, packed=replace(group.packed, tokens=tokens))


def _shortened(group: Batch) -> Batch:
    """The first half of its tokens, as one segment that predicts nothing; of a single token, two."""
    tokens, sample = group.packed.tokens, int(group.packed.sample[0])
    tokens = tokens[: len(tokens) // 2] if len(tokens) > 1 else tokens.repeat(2)
    return replace(group, packed=Packed.tree([tokens], samples=sample), targets=Targets.none())


def _error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest log-probability."""
    if not len(expected):
        return 0.0
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
