"""Rows as a model will see them: decoded again, with what of them is learned."""

from __future__ import annotations

import heapq
import zlib
from dataclasses import dataclass
from typing import final

import numpy as np

from danlu.data.document import Judged, Preference
from danlu.insight.doctor.case import Case
from danlu.insight.doctor.characters import visible

_WHOLE, _KEPT = 400, 150
"""A stretch of more tokens is shown by its beginning and its end."""
_MOST_PIECES = 60
AVOIDED = ("rejected", "undesirable")
"""The answers that are learned to be avoided."""


@dataclass(frozen=True)
class Piece:
    """Neighbouring tokens, decoded.

    Attributes:
        text: what they say, as it can be shown.
        learned: whether they are learned, or only read.
        special: whether it is a special token.
        part: of a prompt with answers, which it is of: "prompt", "chosen", "rejected", "desirable", "undesirable".
    """

    text: str
    learned: bool
    special: bool = False
    part: str = ""


@dataclass(frozen=True)
class Sample:
    """A row, decoded.

    Attributes:
        where: ``file:line``.
        shape: what it was recognised by.
        tokens: how many it has.
        learned: how many of them are learned.
        pieces: what it says, in order.
    """

    where: str
    shape: str
    tokens: int
    learned: int
    pieces: tuple[Piece, ...]


@final
class Samples:
    """Keeps a few rows, each with the same chance, and the same ones every time."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen = 0
        self._kept: list[tuple[int, int, Case]] = []

    def add(self, case: Case) -> None:
        """One more row to choose from."""
        self._seen += 1
        ticket = (-zlib.crc32(str(self._seen).encode()), -self._seen, case)
        if len(self._kept) < self._limit:
            heapq.heappush(self._kept, ticket)
        elif self._kept:
            heapq.heappushpop(self._kept, ticket)

    def taken(self) -> tuple[Sample, ...]:
        """The rows that were kept, in their order, decoded."""
        return tuple(sample_of(case) for _, _, case in sorted(self._kept, key=lambda ticket: -ticket[1]))


def sample_of(case: Case) -> Sample:
    """A row as it will be trained on, decoded."""
    row, learned = case.row, case.learned
    ids = (np.zeros(0, np.int64) if row.ids is None else row.ids)[case.kept]
    special = np.isin(ids, list(case.setting.special_ids))
    part = np.searchsorted(row.answers, case.kept, side="right")
    change = (np.diff(learned) != 0) | special[1:] | special[:-1] | (np.diff(part) != 0)
    names = ("prompt", *row.document.paths) if isinstance(row.document, Preference | Judged) else ("",)
    pieces: list[Piece] = []
    for stretch in np.split(np.arange(len(ids)), np.flatnonzero(change) + 1) if len(ids) else []:
        first = int(stretch[0])
        text = _decoded(case, ids[stretch].tolist())
        pieces.append(Piece(text, bool(learned[first]), bool(special[first]), names[int(part[first])]))
    return Sample(visible(row.where), row.shape, len(ids), case.num_learned, _shortened(pieces))


def _decoded(case: Case, ids: list[int]) -> str:
    if len(ids) <= _WHOLE:
        return visible(case.setting.decode(ids))
    head, tail = (case.setting.decode(part) for part in (ids[:_KEPT], ids[-_KEPT:]))
    return visible(f"{head} … ({len(ids) - 2 * _KEPT:,} more tokens) … {tail}")


def _shortened(pieces: list[Piece]) -> tuple[Piece, ...]:
    if len(pieces) <= _MOST_PIECES:
        return tuple(pieces)
    half = _MOST_PIECES // 2
    left_out = Piece(f" … ({len(pieces) - 2 * half:,} more stretches) … ", learned=False, part=pieces[half].part)
    return (*pieces[:half], left_out, *pieces[-half:])
