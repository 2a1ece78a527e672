"""Prompts and their answers, made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from danlu.contracts import SequenceMethod
from strategies import VOCABULARY


@dataclass(frozen=True)
class Judged:
    """A sample of answers: see `danlu.contracts.Answers`."""

    id: int
    prompt: Any
    answers: Sequence[Any]
    weights: Sequence[Any] | None = None
    values: Mapping[str, Sequence[float]] = field(default_factory=dict)
    num_bytes: float = 11.0
    origin: str = "some.jsonl:1"


def pairs(lengths: Sequence[tuple[int, int, int]], vocabulary: int = VOCABULARY, **values: Any) -> list[Judged]:
    """Random pairs, each by the length of its prompt, of its chosen and of its rejected answer."""
    generator = np.random.default_rng(len(lengths))
    return [
        Judged(
            number,
            generator.integers(vocabulary, size=prompt),
            [generator.integers(vocabulary, size=size) for size in (chosen, rejected)],
            values=values,
            num_bytes=3.0 * (chosen + rejected),
            origin=f"some.jsonl:{number}",
        )
        for number, (prompt, chosen, rejected) in enumerate(lengths)
    ]


def paired(sample: Any) -> Judged:
    """A text's sample as a pair: its first third asks, the rest answers, and backwards it does so worse."""
    cut = max(1, len(sample.tokens) // 3)
    prompt, answer = sample.tokens[:cut], sample.tokens[cut:]
    shorter = answer[::-1][: max(1, len(answer) - sample.id % 3)].copy()
    return Judged(sample.id, prompt, [answer, shorter], num_bytes=sample.num_bytes, origin=sample.origin)


def sample_for(method: SequenceMethod, sample: Any) -> Any:
    """A text's sample as a method takes it."""
    return paired(sample) if method.learns_from == "answers" else sample
