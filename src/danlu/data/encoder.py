"""From a chunk of documents to token ids with their bounds and weights, and to its shard."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int64, UInt

from danlu.data.chunks import Chunk
from danlu.data.document import Document, Judged, Preference, Text, Tokens
from danlu.data.rows import Reader, content
from danlu.data.shard import ANSWER, DOCUMENT, SPAN, VALUES, Fault, Shard
from danlu.data.tokenizer import Tokenizer
from danlu.errors import DataError, UnsupportedError

if TYPE_CHECKING:
    from danlu.data.chat import Chat

_VERSION = 4


@dataclass(frozen=True)
class Encoder:
    """What decides the tokens of a row and their weights.

    An empty text has no tokens, not even a first and a last one. What is not plain text brings its own.

    Attributes:
        tokenizer: makes ids of text.
        add_bos: begin a text with the tokenizer's first token, if it has one.
        add_eos: end it with the last.
        reader: makes documents of rows.
        chat: makes tokens of prompts with completions and of conversations.
    """

    tokenizer: Tokenizer
    add_bos: bool = True
    add_eos: bool = True
    reader: Reader = field(default_factory=Reader)
    chat: Chat | None = None

    def key(self, chunk: Chunk) -> str:
        """A name for what `store_chunk` writes: equal names, equal content."""
        ends = (self._bos, self._eos)
        parts = (_VERSION, self.tokenizer.fingerprint, ends, self.reader, self._chat_key, chunk.kind, chunk.digest)
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def store_chunk(self, chunk: Chunk, path: Path) -> None:
        """Encode a chunk and write its shard; records that are no documents are written down in it as faults.

        Raises:
            DataError: when its file cannot be read at all, or the cache not be written.
        """
        found = _Found()
        places = chunk.place.each(chunk.num_documents)
        for record, read in enumerate(self.reader.read(chunk)):
            try:
                if isinstance(read, DataError):
                    raise read
                self._take(found, record, *read, places[record])
            except DataError as fault:
                found.faults.append(Fault.of(record, fault, chunk.place))
        ids, lengths = self._encode(found)
        documents = np.array(found.documents, DOCUMENT)
        is_text = np.fromiter((own is None for own in found.own), bool, len(documents))
        tokens = self._with_ends(ids, lengths, documents, is_text & (lengths > 0))
        spans, answers = np.array(found.spans, SPAN), np.array(found.answers, ANSWER)
        Shard.write(path, documents, spans, answers, tokens, list(found.shapes), found.faults)

    def encode(self, document: Document, where: str) -> Tokens:
        """The tokens of one document, as `store_chunk` would write them.

        Raises:
            DataError: when it has none.
        """
        if not isinstance(document, Text):
            if self.chat is None:
                raise _not_text(where)
            return self._rendered(self.chat, document, where)
        ids = self.tokenizer.encode(document.text)
        ends = [[] if mark is None or not len(ids) else [mark] for mark in (self._bos, self._eos)]
        return Tokens(np.array([*ends[0], *ids.tolist(), *ends[1]], np.int64))

    def _take(self, found: _Found, record: int, shape: str, document: Document, where: str) -> None:
        """Add a document to what was found; raise what is wrong with it."""
        try:
            told = content(document)
        except UnicodeEncodeError as fault:
            what = f"the text has half of a surrogate pair ({fault.object[fault.start]!r}), which is no character"
            raise DataError(what, where=where, do="Remove or repair it.") from None
        num_bytes = len(told)
        own: Tokens | None = None
        if isinstance(document, Text):
            if document.text:
                found.texts.append(document.text)
        elif self.chat is None:
            raise _not_text(where)
        else:
            own = self._rendered(self.chat, document, where)
            num_bytes = self._learned_bytes(own)
            found.spans += _spans(own)
        if isinstance(document, Preference | Judged) and own is not None:
            found.answers += _answers(own, document)
        found.own.append(own)
        number = found.shapes.setdefault(shape, len(found.shapes))
        ends = (0, len(found.spans), len(found.answers))
        found.documents.append((*ends, num_bytes, record, number, digest_of(told)))

    @staticmethod
    def _rendered(chat: Chat, document: Document, where: str) -> Tokens:
        """The tokens of what is not plain text; a template that cannot render or mask this row is the row's fault."""
        try:
            return chat.encode(document, where)
        except UnsupportedError as fault:
            raise DataError(fault.what, where=where, do=fault.do) from fault

    def _learned_bytes(self, tokens: Tokens) -> int:
        """Bytes of the text that is learned; special tokens are none, and the first token is no target."""
        learned = tokens.ids[1:] if tokens.weights is None else tokens.ids[1:][tokens.weights[1:] > 0]
        return len(self.tokenizer.decode(learned[~np.isin(learned, self.tokenizer.special_ids)]).encode())

    def _encode(self, found: _Found) -> tuple[UInt[np.ndarray, " T"], Int64[np.ndarray, " D"]]:
        """All documents' ids one after another, without ends, and how many are whose."""
        ids, lengths = self.tokenizer.encode_joined(found.texts)
        of_texts = iter(lengths.tolist())
        each = [
            len(own.ids) if own is not None else next(of_texts) if row[3] else 0
            for own, row in zip(found.own, found.documents, strict=True)
        ]
        if any(own is not None for own in found.own):
            parts, at = [], 0
            for own, length in zip(found.own, each, strict=True):
                parts.append(ids[at : at + length] if own is None else own.ids.astype(ids.dtype))
                at += length if own is None else 0
            ids = np.concatenate(parts)
        return ids, np.array(each, np.int64)

    @property
    def _chat_key(self) -> object:
        """What decides the tokens of what is not plain text; not the date, which a template may tell."""
        if self.chat is None or self.reader.template is not None:
            return None
        template = self.chat.template
        rendered = (
            None if template is None else (template.source, template.with_tools, sorted(template.special.items()))
        )
        return rendered, self.chat.train_on

    @property
    def _bos(self) -> int | None:
        return self.tokenizer.bos_id if self.add_bos else None

    @property
    def _eos(self) -> int | None:
        return self.tokenizer.eos_id if self.add_eos else None

    def _with_ends(
        self,
        ids: UInt[np.ndarray, " T"],
        lengths: Int64[np.ndarray, " D"],
        documents: np.ndarray,
        marked: Bool[np.ndarray, " D"],
    ) -> UInt[np.ndarray, " U"]:
        """Put the first and last tokens around the documents that are marked; sets the ends of all."""
        marks = ((self._bos is not None) + (self._eos is not None)) * marked
        ends = np.cumsum(lengths + marks)
        documents["end"] = ends
        tokens = np.empty(int(ends[-1]) if len(ends) else 0, ids.dtype)
        inside = np.ones(len(tokens), bool)
        first, last = (ends - lengths - marks)[marked], ends[marked] - 1
        for mark, where in ((self._bos, first), (self._eos, last)):
            if mark is not None:
                tokens[where] = mark
                inside[where] = False
        tokens[inside] = ids
        return tokens


@dataclass
class _Found:
    """What a chunk holds, as it is read.

    Attributes:
        texts: texts that are not empty, to be encoded together.
        own: each document's own tokens; None for a text.
        documents: `DOCUMENT` rows, their ends still open.
        spans: `SPAN` rows.
        answers: `ANSWER` rows.
        shapes: each shape's number.
        faults: records that are no documents.
    """

    texts: list[str] = field(default_factory=list)
    own: list[Tokens | None] = field(default_factory=list)
    documents: list[tuple[int, ...]] = field(default_factory=list)
    spans: list[tuple[int, int, float]] = field(default_factory=list)
    answers: list[tuple[float, ...]] = field(default_factory=list)
    shapes: dict[str, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


def digest_of(told: bytes) -> int:
    """A hash of what a document says."""
    return int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "little")


def _not_text(where: str) -> DataError:
    return DataError("the row is not plain text", where=where, do="Name its text with data.field.")


def _spans(tokens: Tokens) -> list[tuple[int, int, float]]:
    """Runs of equal weight; none where all is learned alike."""
    weights = tokens.weights
    if weights is None or (weights == 1).all():
        return []
    starts = [0, *(np.flatnonzero(np.diff(weights)) + 1).tolist()]
    return list(zip(starts, [*starts[1:], len(weights)], weights[starts].tolist(), strict=True))


def _answers(tokens: Tokens, document: Preference | Judged) -> list[tuple[float, ...]]:
    """Where each answer lies, and the numbers that came with it."""
    values = zip(*(document.values.get(name, (math.nan,) * len(tokens.answers)) for name in VALUES), strict=True)
    ends = (*tokens.answers[1:], len(tokens.ids))
    return [(start, end, *own) for start, end, own in zip(tokens.answers, ends, values, strict=True)]
