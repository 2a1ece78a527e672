"""The documents of some files, known by an index and encoded a part at a time."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from danlu.data import store
from danlu.data.cache import WORTH_PROCESSES, TokenCache
from danlu.data.chunks import Chunk
from danlu.data.corpus import Corpus
from danlu.data.cutting import Rules
from danlu.data.encoder import Encoder
from danlu.data.files import resolve
from danlu.data.index import index
from danlu.data.quarantine import Quarantine
from danlu.data.statistics import Statistics
from danlu.data.stream import POOL_BYTES, Stream
from danlu.errors import DataError

_TRIED = 4
"""Chunks that tell how many more a number of samples takes."""
_MARGIN = 1.2
"""How many more than that are read, so that there is no third time."""


class Collection:
    """Documents that are indexed, of which any chunks become a corpus when they are wanted.

    Attributes:
        chunks: in the order of the files.
        rules: what decides the samples.
        num_files: files that it was made of.
        num_documents: documents on both sides of a split, and rows that are none.
        num_bytes: bytes of all documents, unpacked.
        sizes: bytes of each chunk.
        counts: documents of each chunk.
        max_token: the largest token that has been read.
        fingerprint: a hash of all that decides the samples.
    """

    def __init__(
        self, chunks: Sequence[Chunk], cache: TokenCache, rules: Rules, quarantine: Quarantine, num_files: int
    ) -> None:
        """Make one; `open` finds the chunks."""
        self.chunks = list(chunks)
        self.rules = rules
        self.num_files = num_files
        self.sizes = np.array([chunk.num_bytes for chunk in chunks], np.int64)
        self.counts = np.array([chunk.num_documents for chunk in chunks], np.int64)
        self.num_documents, self.num_bytes = int(self.counts.sum()), int(self.sizes.sum())
        self._cache = cache
        self._quarantine = quarantine
        self._read: set[int] = set()
        self._counted = [Statistics()]
        self._vocabulary: int | None = None
        self.max_token = 0

    @classmethod
    def open(
        cls,
        files: str | Sequence[str],
        encoder: Encoder,
        rules: Rules,
        *,
        cache: str | Path | None = None,
        workers: int = 0,
        quarantine: str | Path | None = None,
        worth_processes: int = WORTH_PROCESSES,
    ) -> Collection:
        """Index some files; nothing is parsed or encoded yet.

        Args:
            files: files, globs, folders and names of hub data sets.
            encoder: what makes tokens of rows.
            rules: what decides the samples.
            cache: the token cache's folder; by default `store.cache_folder`'s.
            workers: processes to encode with; 0 is as many as there are cores.
            quarantine: a folder to set bad rows aside in; without one, they are refused.
            worth_processes: bytes of documents from which more than one process is used.

        Raises:
            DataError: when a file cannot be read, or the cache not be written.
        """
        paths, folder = resolve(files), store.cache_folder(cache)
        chunks = index(paths, folder)
        if not chunks:
            raise DataError("there are no rows", where=paths[0], do="Name files with rows in them.")
        parallel = sum(chunk.num_bytes for chunk in chunks) >= worth_processes
        made = TokenCache(encoder, folder, workers=workers, parallel=parallel)
        return cls(chunks, made, rules, Quarantine(quarantine), len(paths))

    def corpus(self, chunks: Sequence[int], limit: int | None = None) -> Corpus:
        """The samples of some chunks, by their numbers; what is not encoded yet is.

        Raises:
            DataError: when a file, or a row that is not set aside, cannot be used.
        """
        shards = self._cache.shards([self.chunks[number] for number in chunks])
        for number, shard in zip(chunks, shards, strict=True):
            faults = [(fault.record, fault.error(shard.place)) for fault in shard.faults]
            self._quarantine.put(self.chunks[number], faults)
        some = len(chunks) < len(self.chunks)
        corpus = Corpus(shards, self.rules, num_files=self.num_files, numbers=chunks if some else None, limit=limit)
        if corpus.policy == "refuse":
            self._refuse(corpus, chunks)
        self._note(corpus, chunks)
        return corpus

    def whole(self, limit: int | None = None, *, may_be_empty: bool = False) -> Corpus:
        """The samples of all chunks, or the first of them: then no more is encoded than these take.

        Raises:
            DataError: as `corpus`, and when there is no sample, unless there need be none.
        """
        count = len(self.chunks)
        wanted = count if limit is None else min(count, _TRIED)
        corpus = self.corpus(range(wanted), limit)
        while limit is not None and len(corpus) < limit and wanted < count:
            missing = min(limit / max(len(corpus), 1), _TRIED)
            wanted = min(count, math.ceil(_MARGIN * missing * wanted))
            corpus = self.corpus(range(wanted), limit)
        if not len(corpus) and not may_be_empty:
            self.check_samples()
        return corpus

    @property
    def encoder(self) -> Encoder:
        """What makes tokens of its rows."""
        return self._cache.encoder

    def set_aside(self, number: int, faults: Sequence[tuple[int, DataError]]) -> None:
        """Put bad rows of a chunk into quarantine, where there is one."""
        if self._quarantine.folder is not None:
            self._quarantine.put(self.chunks[number], faults)

    def prefetch(self, chunks: Sequence[int]) -> None:
        """Begin to encode some chunks in the background."""
        self._cache.prefetch([self.chunks[number] for number in chunks])

    def held_out(self) -> Collection:
        """The other side of the split."""
        rules = replace(self.rules, side="held_out")
        return Collection(self.chunks, self._cache, rules, self._quarantine, self.num_files)

    def stream(
        self, *, seed: int, shuffle: bool = True, epochs: int | None = None, pool_bytes: int = POOL_BYTES
    ) -> Stream:
        """Its samples in the order of a run; see `Stream`."""
        return Stream(self, seed=seed, shuffle=shuffle, epochs=epochs, pool_bytes=pool_bytes)

    def close(self) -> None:
        """End the processes that encode."""
        self._cache.close()

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides the samples: documents, tokenizer, options and rules."""
        state = hashlib.blake2b(repr(self.rules).encode(), digest_size=16)
        for chunk in self.chunks:
            state.update(self._cache.encoder.key(chunk).encode())
        return state.hexdigest()

    @property
    def statistics(self) -> Statistics:
        """What has been read of it so far, each chunk once, counted."""
        self._counted = [Statistics.total(self._counted)]
        return replace(self._counted[0], files=self.num_files, complete=len(self._read) == len(self.chunks))

    @property
    def share_read(self) -> float:
        """The share of its documents that `statistics` counts."""
        return float(self.counts[list(self._read)].sum()) / max(self.num_documents, 1)

    @property
    def expected(self) -> tuple[int, int]:
        """About how many samples and targets a pass has, from what has been read; exact once all has, 0 before any."""
        read, share = self.statistics, self.share_read or 1.0
        return round(read.samples / share), round(read.targets / share)

    def bound_tokens(self, vocabulary: int) -> None:
        """Refuse tokens that a model has not, now and whenever more is read.

        Raises:
            DataError: when there is one.
        """
        self._vocabulary = vocabulary
        if self.max_token >= vocabulary:
            what = f"the data hold token {self.max_token}, and the model's last is {vocabulary - 1}"
            raise DataError(what, do="Use the model's own tokenizer, or raise model.vocab_size.")

    def check_samples(self) -> None:
        """See that it gives a sample, as far as it has been read.

        Raises:
            DataError: when all of it has been read, and it gives none.
        """
        read = self.statistics
        if read.samples or not read.complete:
            return
        where, count = self.chunks[0].place.paths[0], self.num_documents
        if aside := read.faults + read.refused:
            what = f"{aside} of {count} rows were set aside, and nothing is left to learn from"
            raise DataError(what, where=where, do="Look into the quarantine.")
        if self.rules.fraction and read.empty + read.too_short < count:
            side = "hold out" if self.rules.side == "held_out" else "train on"
            what = f"a split of {count} documents at {self.rules.fraction} leaves none to {side}"
            raise DataError(what, do="Change data.held_out: another fraction, files of its own, or null.")
        if read.unlearned:
            what, do = f"nothing of the {count} documents is learned", "Look at data.train_on and data.too_long."
            raise DataError(what, where=where, do=do)
        what = f"none of the {count} documents has two tokens"
        raise DataError(what, where=where, do="Name files with text in them.")

    def _refuse(self, corpus: Corpus, chunks: Sequence[int]) -> None:
        """Set aside the documents that are longer than the context."""
        by_shard: dict[int, list[tuple[int, DataError]]] = {}
        for shard, record, targets in corpus.too_long():
            told = "prompt with its longest answer" if corpus.answers else "document"
            what = f"the {told} has {targets + 1} tokens, and {self.rules.context + 1} fit"
            do = "Raise data.context, shorten it, or set data.too_long or data.quarantine."
            where = corpus.shards[shard].place.of(record)
            by_shard.setdefault(shard, []).append((record, DataError(what, where=where, do=do)))
        for shard, faults in by_shard.items():
            self._quarantine.put(self.chunks[chunks[shard]], faults)

    def _note(self, corpus: Corpus, chunks: Sequence[int]) -> None:
        """Count what is read for the first time."""
        self.max_token = max(self.max_token, corpus.max_token)
        if self._vocabulary is not None:
            self.bound_tokens(self._vocabulary)
        anew = [position for position, number in enumerate(chunks) if number not in self._read]
        if anew:
            self._counted.append(corpus.count(anew))
            self._read.update(chunks)
