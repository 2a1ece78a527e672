"""What was read, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields


@dataclass(frozen=True)
class Statistics:
    """What some documents hold, and what of them gives no sample.

    Attributes:
        files: files that were named, before any split.
        documents: all documents that could be read.
        empty: documents without a token.
        too_short: documents with one token, so nothing to predict.
        cut: documents longer than the context, cut into several samples.
        truncated: documents longer than the context, of which one end is a sample.
        refused: documents longer than the context, set aside.
        unlearned: documents of which nothing that is left is learned.
        faults: rows that are no documents, set aside.
        tokens: tokens of all documents, first and last tokens included.
        samples: pieces of at most `context` targets.
        targets: their targets.
        learned: those that have a weight.
        num_bytes: UTF-8 bytes of all documents, of what is learned.
        shapes: how many documents, empty ones left out, came in which shape.
        complete: whether these are all the data; else they are what has been read so far.
    """

    files: int = 0
    documents: int = 0
    empty: int = 0
    too_short: int = 0
    cut: int = 0
    truncated: int = 0
    refused: int = 0
    unlearned: int = 0
    faults: int = 0
    tokens: int = 0
    samples: int = 0
    targets: int = 0
    learned: int = 0
    num_bytes: int = 0
    shapes: Mapping[str, int] = field(default_factory=dict)
    complete: bool = True

    @staticmethod
    def total(each: Iterable[Statistics]) -> Statistics:
        """Of several, all together."""
        parts = list(each)
        counted = [name.name for name in fields(Statistics) if name.name not in ("shapes", "complete")]
        shapes: Counter[str] = Counter()
        for part in parts:
            shapes.update(part.shapes)
        sums = {name: sum(getattr(part, name) for part in parts) for name in counted}
        return Statistics(**sums, shapes=dict(shapes), complete=all(part.complete for part in parts))
