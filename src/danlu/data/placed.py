"""The documents of some shards together, each with where in its shard its tokens, spans and answers lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64

from danlu.data.cutting import Paths
from danlu.data.shard import ANSWER, DOCUMENT, SPAN, Shard

_PLACED = np.dtype(
    [(name, "<i8") for name in ("shard", "start", "spans_start", "answers_start")] + list(DOCUMENT.descr)
)


def place(shards: Sequence[Shard]) -> np.ndarray:
    """A row a document of all shards: a `DOCUMENT` row, its shard, and where in that its tokens and the rest start."""
    placed = np.zeros(sum(len(shard.documents) for shard in shards), _PLACED)
    row = 0
    for number, shard in enumerate(shards):
        rows = placed[row : row + len(shard.documents)]
        for column in DOCUMENT.names or ():
            rows[column] = shard.documents[column]
        rows["shard"] = number
        for name in ("", "spans_", "answers_"):
            rows[f"{name}start"][1:] = shard.documents[f"{name}end"][:-1]
        row += len(rows)
    return placed


def spans_of(shards: Sequence[Shard], documents: np.ndarray) -> tuple[Int64[np.ndarray, " D"], np.ndarray]:
    """How many spans each document has, and these, one document's after another's."""
    return _gathered([shard.spans for shard in shards], documents, "spans", SPAN)


def paths_of(shards: Sequence[Shard], documents: np.ndarray) -> Paths:
    """The prompts and answers of all documents."""
    count, answers = _gathered([shard.answers for shard in shards], documents, "answers", ANSWER)
    return Paths(np.repeat(np.arange(len(documents)), count), answers["start"], answers["end"], len(documents))


def weights_of(spans: np.ndarray, start: int, count: int) -> Float32[np.ndarray, " n"] | None:
    """The weights of some tokens of a document, or None where all are one."""
    if not len(spans):
        return None
    weights = np.zeros(count, np.float32)
    for begin, end, weight in spans.tolist():
        weights[max(begin - start, 0) : max(end - start, 0)] = weight
    return None if (weights == 1).all() else weights


def _gathered(
    held: Sequence[np.ndarray], documents: np.ndarray, what: str, kind: np.dtype[np.void]
) -> tuple[Int64[np.ndarray, " D"], np.ndarray]:
    """Rows that lie in shards, as many of each document as it has, and how many these are."""
    sizes = np.array([len(rows) for rows in held], np.int64)
    count = documents[f"{what}_end"] - documents[f"{what}_start"]
    first = (np.cumsum(sizes) - sizes)[documents["shard"]] + documents[f"{what}_start"]
    numbers = np.repeat(first - (np.cumsum(count) - count), count) + np.arange(int(count.sum()))
    return count, np.concatenate([np.zeros(0, kind), *held])[numbers]
