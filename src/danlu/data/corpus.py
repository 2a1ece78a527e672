"""The documents of some files as samples: cut at the context, drawn from the token cache by index."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64

from danlu.data.cache import tokenize
from danlu.data.encoder import DOCUMENT, Encoder, Shard
from danlu.data.files import resolve
from danlu.data.order import chosen
from danlu.data.template import Template
from danlu.data.tokenizer import Tokenizer
from danlu.errors import DataError

_OPEN_FILES = 256
_PLACED = np.dtype([("shard", "<i8"), ("start", "<i8"), *DOCUMENT.descr])


@dataclass(frozen=True)
class Sample:
    """A document, or a piece of one.

    Attributes:
        tokens: n + 1 ids: the first n are inputs, the last n their targets.
        id: its index in the corpus, which is the same in every run over the same data.
        num_bytes: its share of the document's UTF-8 bytes, in proportion to its targets.
        origin: ``file:line``, and which tokens of the document they are if it was cut.
    """

    tokens: Int64[np.ndarray, " n+1"]
    id: int
    num_bytes: float
    origin: str

    @property
    def num_targets(self) -> int:
        """How many tokens it predicts, n: what `Corpus.lengths` says of it."""
        return len(self.tokens) - 1


@dataclass(frozen=True)
class Statistics:
    """What a corpus holds, and what of it gives no sample.

    Attributes:
        files: files that were read, before any split.
        documents: all documents.
        empty: documents without text; they have no tokens.
        too_short: documents with text but fewer than two tokens, so nothing to predict.
        cut: documents longer than the context, cut into several samples.
        tokens: tokens of all documents, first and last tokens included.
        samples: pieces of at most `context` targets.
        num_bytes: UTF-8 bytes of all documents.
    """

    files: int
    documents: int
    empty: int
    too_short: int
    cut: int
    tokens: int
    samples: int
    num_bytes: int


class Corpus:
    """Samples by index. The documents' tokens stay on disk; their bounds are in memory.

    A document of m tokens has m - 1 targets. Cut at `context`, its pieces overlap by one token, so that every token
    after the document's first is a target exactly once.

    Attributes:
        context: the most targets of a sample.
        lengths: the number of targets of each sample.
        num_files: files that were read.
    """

    def __init__(self, shards: Sequence[Shard], documents: np.ndarray, context: int, num_files: int) -> None:
        """Cut documents into samples; `open` finds the documents.

        Args:
            shards: parts of the token cache.
            documents: which of their documents, as `_place` gives them.
            context: the most targets of a sample.
            num_files: files that were read.
        """
        self.context = context
        self.num_files = num_files
        self._shards = list(shards)
        self._documents = documents
        self._targets: Int64[np.ndarray, " D"] = np.maximum(documents["end"] - documents["start"] - 1, 0)
        pieces = -(-self._targets // context)
        self._document = np.repeat(np.arange(len(documents)), pieces)
        before = np.repeat(np.cumsum(pieces) - pieces, pieces)
        self._offset = (np.arange(len(before)) - before) * context
        self.lengths: Int64[np.ndarray, " S"] = np.minimum(self._targets[self._document] - self._offset, context)
        self._tokens_of = functools.lru_cache(_OPEN_FILES)(self._map_tokens)

    @classmethod
    def open(
        cls,
        files: str | Sequence[str],
        tokenizer: Tokenizer,
        *,
        context: int,
        field: str = "text",
        cache: str | Path | None = None,
        workers: int = 0,
        add_bos: bool = True,
        add_eos: bool = True,
    ) -> Corpus:
        """Read files, by way of the token cache.

        Args:
            files: files, globs and folders.
            tokenizer: what encodes the documents.
            context: the most targets of a sample, at least 1.
            field: of JSONL and Parquet, the field that holds the text, or a template of fields.
            cache: the cache's folder.
            workers: processes to encode with; 0 is as many as there are cores.
            add_bos: begin a document with the tokenizer's first token, if it has one.
            add_eos: end a document with the tokenizer's last token, if it has one.

        Raises:
            DataError: when a file cannot be read, or no document has two tokens.
        """
        paths = resolve(files)
        shards = tokenize(
            paths, Template.parse(field), Encoder(tokenizer, add_bos, add_eos), cache=cache, workers=workers
        )
        corpus = cls(shards, _place(shards), context, len(paths))
        if not len(corpus):
            what = f"none of the {len(corpus._documents)} documents has two tokens"
            raise DataError(what, where=paths[0], do="Name files with text in them.")
        return corpus

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        which, offset, length = (int(a[index]) for a in (self._document, self._offset, self.lengths))
        document, targets = self._documents[which], int(self._targets[which])
        start = int(document["start"]) + offset
        tokens = self._tokens_of(int(document["shard"]))[start : start + length + 1].astype(np.int64)
        origin = self._shards[document["shard"]].place.of(int(document["record"]))
        if length < targets:
            origin += f" tokens {offset}-{offset + length}"
        return Sample(tokens, index, int(document["num_bytes"]) * length / targets, origin)

    @property
    def max_token(self) -> int:
        """The largest token id in the files it was read from, to be compared with a model's vocabulary."""
        return max(shard.max_token for shard in self._shards)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides the samples: documents, tokenizer, options, context and side of a split."""
        state = hashlib.blake2b(str(self.context).encode(), digest_size=16)
        for shard in self._shards:
            state.update(shard.path.name.encode())
        for column in ("shard", "record"):
            state.update(self._documents[column].tobytes())
        return state.hexdigest()

    @functools.cached_property
    def statistics(self) -> Statistics:
        """What it holds, counted."""
        documents = self._documents
        empty = documents["num_bytes"] == 0
        return Statistics(
            files=self.num_files,
            documents=len(documents),
            empty=int(empty.sum()),
            too_short=int(((self._targets == 0) & ~empty).sum()),
            cut=int((self._targets > self.context).sum()),
            tokens=int((documents["end"] - documents["start"]).sum()),
            samples=len(self),
            num_bytes=int(documents["num_bytes"].sum()),
        )

    def split(self, fraction: float, seed: int) -> tuple[Corpus, Corpus]:
        """Hold documents out, each by its own text.

        So a document stays on its side when others are added, and equal documents are on one side: none is both learned
        and held out.

        Args:
            fraction: the share of documents to hold out, in (0, 1).
            seed: another seed holds out others.

        Returns:
            What is left to train on, and what is held out.

        Raises:
            DataError: when one side has no sample.
        """
        held = chosen(self._documents["digest"], fraction, seed)
        train, held_out = self._only(~held), self._only(held)
        if not len(train) or not len(held_out):
            side = "hold out" if len(train) else "train on"
            what = f"a split of {len(self._documents)} documents at {fraction} leaves none to {side}"
            raise DataError(what, do="Change data.held_out: another fraction, files of its own, or null.")
        return train, held_out

    def _only(self, keep: Bool[np.ndarray, " D"]) -> Corpus:
        return Corpus(self._shards, self._documents[keep], self.context, self.num_files)

    def _map_tokens(self, shard: int) -> np.ndarray:
        try:
            return self._shards[shard].map_tokens()
        except (OSError, ValueError) as fault:
            path = self._shards[shard].path
            raise DataError(
                "the token cache has lost a file", where=path, do="Start again; it is made anew."
            ) from fault


def _place(shards: Sequence[Shard]) -> np.ndarray:
    """All documents of some shards, each with its shard and where in it its tokens start."""
    placed = np.zeros(sum(len(shard.documents) for shard in shards), _PLACED)
    row = 0
    for number, shard in enumerate(shards):
        rows = placed[row : row + len(shard.documents)]
        for column in DOCUMENT.names or ():
            rows[column] = shard.documents[column]
        rows["shard"] = number
        rows["start"][1:] = shard.documents["end"][:-1]
        row += len(rows)
    return placed
