"""What methods learn from: a sequence, or a prompt with its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32, Int64

from danlu.data.cutting import Rules, trimmed
from danlu.data.placed import weights_of
from danlu.data.shard import VALUES


@dataclass(frozen=True)
class Sample:
    """A document, or a piece of one.

    Attributes:
        tokens: n + 1 ids: the first n are inputs, the last n their targets.
        id: which one of all data it is, the same in every run over the same data.
        num_bytes: its share of the document's learned UTF-8 bytes, in proportion to its learned targets.
        origin: ``file:line``, and which tokens of the document they are if it was cut.
        weights: how much each target counts; None is one for all.
        shape: what kind of row it was.
    """

    tokens: Int64[np.ndarray, " n+1"]
    id: int
    num_bytes: float
    origin: str
    weights: Float32[np.ndarray, " n"] | None = None
    shape: str = "text"

    @property
    def num_targets(self) -> int:
        """How many tokens it predicts, n: what `Corpus.lengths` says of it."""
        return len(self.tokens) - 1


@dataclass(frozen=True)
class Answers:
    """A prompt and its answers: of a pair the chosen one and the rejected one, or a single one that was judged.

    Attributes:
        prompt: the ids before all answers, at least one; none of them is learned.
        answers: each one's ids up to the last that is learned, such as the token that ends a turn.
        id: which one of all data it is, the same in every run over the same data.
        num_bytes: the learned UTF-8 bytes of all answers.
        origin: ``file:line``, and that it was truncated if it was.
        weights: how much each id of each answer counts; None is one for all.
        values: numbers that came with the row, for each answer: "desirable" (1 or 0) of a judged one; of a pair
            "margin", the same for both, and "score". What the row does not say is not there.
        shape: what kind of row it was.
    """

    prompt: Int64[np.ndarray, " p"]
    answers: tuple[Int64[np.ndarray, " _"], ...]
    id: int
    num_bytes: float
    origin: str
    weights: tuple[Float32[np.ndarray, " _"], ...] | None = None
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    shape: str = "preference"

    @property
    def num_targets(self) -> int:
        """Its tokens, the prompt once, but for the first: what `Corpus.lengths` says of it."""
        return len(self.prompt) + sum(map(len, self.answers)) - 1


AnySample: TypeAlias = Sample | Answers


def cut_answers(
    tokens: np.ndarray, rows: np.ndarray, spans: np.ndarray, rules: Rules
) -> tuple[Int64[np.ndarray, " p"], tuple[Int64[np.ndarray, " _"], ...], tuple[Float32[np.ndarray, " _"], ...] | None]:
    """A document's prompt, its answers and their weights, truncated as the rules say.

    Args:
        tokens: all of the document.
        rows: an `ANSWER` row each.
        spans: its `SPAN` rows.
        rules: how to cut; they have a use for the document.
    """
    prompt, sizes = int(rows["start"][0]), rows["end"] - rows["start"]
    dropped, most = trimmed(np.array([prompt]), np.array([int(sizes.max())]), rules)
    kept = [
        (start, min(size, int(most[0]))) for start, size in zip(rows["start"].tolist(), sizes.tolist(), strict=True)
    ]
    answers = tuple(tokens[start : start + size].astype(np.int64) for start, size in kept)
    weights = [weights_of(spans, start, size) for start, size in kept]
    weighed: Sequence[Float32[np.ndarray, " _"]] = [
        np.ones(size, np.float32) if own is None else own for own, (_, size) in zip(weights, kept, strict=True)
    ]
    every = None if all(own is None for own in weights) else tuple(weighed)
    return tokens[int(dropped[0]) : prompt].astype(np.int64), answers, every


def values_of(rows: np.ndarray) -> dict[str, tuple[float, ...]]:
    """The numbers that came with some answers, `ANSWER` rows of one document."""
    return {name: tuple(rows[name].tolist()) for name in VALUES if not np.isnan(rows[name]).any()}
