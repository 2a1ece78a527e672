"""From a chunk of documents to token ids with their bounds, and to the bytes of its shard."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from danlu.data import store
from danlu.data.formats import Chunk, Place
from danlu.data.tokenizer import Tokenizer

_VERSION = 1
_HEAD_INTEGERS = 4  # documents, largest token, bytes a token, and one to keep

DOCUMENT = np.dtype([("end", "<i8"), ("num_bytes", "<i8"), ("record", "<i8"), ("digest", "<u8")])
"""A row a document: where its tokens end, its UTF-8 bytes, its place in the chunk, and a hash of its text."""


@dataclass(frozen=True)
class Encoder:
    """What decides the tokens of a document: a tokenizer, and whether to mark where a document begins and ends.

    An empty document has no tokens, not even those.
    """

    tokenizer: Tokenizer
    add_bos: bool = True
    add_eos: bool = True

    def key(self, chunk: Chunk) -> str:
        """A name for what `store_chunk` writes: equal names, equal content."""
        ends = (self._bos, self._eos)
        parts = (_VERSION, self.tokenizer.fingerprint, ends, chunk.digest)
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def store_chunk(self, chunk: Chunk, path: Path) -> None:
        """Encode a chunk and write its shard.

        Raises:
            DataError: when a record cannot be read, or the cache not be written.
        """
        texts = chunk.texts()
        contents = [text.encode() for text in texts]
        documents = np.zeros(len(texts), DOCUMENT)
        documents["num_bytes"] = np.fromiter(map(len, contents), np.int64, len(contents))
        documents["record"] = np.arange(len(texts))
        documents["digest"] = np.frombuffer(b"".join(map(_digest, contents)), "<u8")
        ids, lengths = self.tokenizer.encode_joined([text for text in texts if text])
        tokens = self._with_ends(ids, lengths, documents)
        head = np.array([len(texts), tokens.max(initial=0), tokens.itemsize, 0], "<i8")
        store.write(path, [head.tobytes(), documents.tobytes(), tokens.tobytes()])

    @property
    def _bos(self) -> int | None:
        return self.tokenizer.bos_id if self.add_bos else None

    @property
    def _eos(self) -> int | None:
        return self.tokenizer.eos_id if self.add_eos else None

    def _with_ends(self, ids: np.ndarray, lengths: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """Put the first and last tokens around documents that are not empty; sets the ends of all."""
        held = documents["num_bytes"] > 0
        marks = (self._bos is not None) + (self._eos is not None)
        documents["end"][held] = lengths + marks
        documents["end"] = np.cumsum(documents["end"])
        tokens = np.empty(int(documents["end"][-1]), ids.dtype)
        inside = np.ones(len(tokens), bool)
        last = documents["end"][held] - 1
        first = last + 1 - marks - lengths
        for mark, where in ((self._bos, first), (self._eos, last)):
            if mark is not None:
                tokens[where] = mark
                inside[where] = False
        tokens[inside] = ids
        return tokens


@dataclass(frozen=True)
class Shard:
    """A chunk in the cache; its tokens stay on disk.

    Attributes:
        path: the cache file, whose name is the key of its content.
        place: where the documents were read.
        documents: one `DOCUMENT` row each.
        max_token: the largest token id.
        token_bytes: how wide an id is.
    """

    path: Path
    place: Place
    documents: np.ndarray
    max_token: int
    token_bytes: int

    @classmethod
    def open(cls, path: Path, place: Place) -> Shard | None:
        """The shard at `path`, or None when it is absent, cut short or altered."""
        content = store.read(path)
        if content is None:
            return None
        count, max_token, token_bytes, _ = np.frombuffer(content, "<i8", _HEAD_INTEGERS).tolist()
        documents = np.frombuffer(content, DOCUMENT, count, offset=8 * _HEAD_INTEGERS).copy()
        return cls(path, place, documents, max_token, token_bytes)

    def map_tokens(self) -> np.ndarray:
        """Its tokens, mapped into memory read-only.

        Raises:
            OSError: when the file is gone.
            ValueError: when it has become shorter.
        """
        offset = store.HEADER_BYTES + 8 * _HEAD_INTEGERS + self.documents.nbytes
        count = int(self.documents["end"][-1])
        return np.memmap(self.path, f"<u{self.token_bytes}", mode="r", offset=offset, shape=(count,))


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=8).digest()
