"""A chunk's documents in the cache: tokens on disk, and what must be known of each document in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from danlu.data import store
from danlu.data.chunks import Place
from danlu.errors import DataError

DOCUMENT = np.dtype(
    [(name, "<i8") for name in ("end", "spans_end", "answers_end", "num_bytes", "record", "shape")]
    + [("digest", "<u8")]
)
"""A row a document: where its tokens, its spans and its answers end, the UTF-8 bytes that are learned of it, its place
in the chunk, its shape's number, and a hash of its content."""

SPAN = np.dtype([("start", "<i8"), ("end", "<i8"), ("weight", "<f8")])
"""Tokens of a document, counted from its first, that weigh the same. A document without spans weighs one throughout;
the spans of any other cover all of it."""

VALUES = ("desirable", "margin", "score")
ANSWER = np.dtype([("start", "<i8"), ("end", "<i8"), *((name, "<f8") for name in VALUES)])
"""A row an answer: its tokens, counted from its document's first, and numbers that came with it, NaN where none did.
What lies before a document's first answer is the prompt of all its answers."""

_HEAD_INTEGERS = 6  # documents, spans, bytes of names and faults, largest token, bytes a token, answers
_LINE = re.compile(r"(.*?):(\d+)(.*)", re.DOTALL)


class Fault(NamedTuple):
    """A record that is no document.

    Attributes:
        record: its place in the chunk.
        lines: lines from its first to the one at fault.
        within: what of the line it is about, if that is known.
        what: went wrong.
        do: something about it.
    """

    record: int
    lines: int
    within: str
    what: str
    do: str

    @classmethod
    def of(cls, record: int, error: DataError, place: Place) -> Fault:
        """What an error says, so that it holds wherever else the same content may lie."""
        path, first = place.of(record).rsplit(":", 1)
        found = _LINE.fullmatch((error.where or "").removeprefix(path))
        lines, within = (int(found[2]) - int(first), found[3]) if found and not found[1] else (0, "")
        return cls(record, lines, within, error.what, error.do)

    def error(self, place: Place) -> DataError:
        """As it is told, by ``file:line``."""
        path, first = place.of(self.record).rsplit(":", 1)
        return DataError(self.what, where=f"{path}:{int(first) + self.lines}{self.within}", do=self.do)


@dataclass(frozen=True)
class Shard:
    """A chunk in the cache; its tokens stay on disk.

    Attributes:
        path: the cache file, whose name is the key of its content.
        place: where the documents were read.
        documents: one `DOCUMENT` row each.
        spans: `SPAN` rows, those of a document together.
        answers: `ANSWER` rows, those of a document together.
        shapes: the names of the documents' shapes.
        faults: records that are no documents.
        max_token: the largest token id.
        token_bytes: how wide an id is.
    """

    path: Path
    place: Place
    documents: np.ndarray
    spans: np.ndarray
    answers: np.ndarray
    shapes: tuple[str, ...]
    faults: tuple[Fault, ...]
    max_token: int
    token_bytes: int

    @classmethod
    def open(cls, path: Path, place: Place) -> Shard | None:
        """The shard at `path`, or None when it is absent, cut short or altered."""
        content = store.read(path)
        if content is None:
            return None
        at = 8 * _HEAD_INTEGERS
        count, spans, notes, max_token, token_bytes, answers = np.frombuffer(content, "<i8", _HEAD_INTEGERS).tolist()
        documents = np.frombuffer(content, DOCUMENT, count, offset=at).copy()
        at += documents.nbytes
        weights = np.frombuffer(content, SPAN, spans, offset=at).copy()
        at += weights.nbytes
        answered = np.frombuffer(content, ANSWER, answers, offset=at).copy()
        at += answered.nbytes
        said: dict[str, Any] = json.loads(bytes(content[at : at + notes]))
        faults = tuple(Fault(*fault) for fault in said["faults"])
        shapes = tuple(said["shapes"])
        return cls(path, place, documents, weights, answered, shapes, faults, max_token, token_bytes)

    @staticmethod
    def write(
        path: Path,
        documents: np.ndarray,
        spans: np.ndarray,
        answers: np.ndarray,
        tokens: np.ndarray,
        shapes: Sequence[str],
        faults: Sequence[Fault],
    ) -> None:
        """Put a shard into the cache.

        Raises:
            DataError: when it cannot be written.
        """
        notes = json.dumps({"shapes": shapes, "faults": faults}).encode()
        notes += b" " * (-len(notes) % 8)
        head = [len(documents), len(spans), len(notes), tokens.max(initial=0), tokens.itemsize, len(answers)]
        parts = (np.array(head, "<i8"), documents, spans, answers)
        store.write(path, [*(part.tobytes() for part in parts), notes, tokens.tobytes()])

    def map_tokens(self) -> np.ndarray:
        """Its tokens, mapped into memory read-only.

        Raises:
            OSError: when the file is gone.
            ValueError: when it has become shorter.
        """
        count = int(self.documents["end"][-1])
        size = self.path.stat().st_size
        return np.memmap(
            self.path, f"<u{self.token_bytes}", mode="r", offset=size - count * self.token_bytes, shape=(count,)
        )
