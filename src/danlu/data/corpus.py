"""Samples by index, out of the shards of some chunks."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from danlu.data.cutting import Learned, Rules, TooLong, cut
from danlu.data.placed import paths_of, place, spans_of, weights_of
from danlu.data.samples import Answers, AnySample, Sample, cut_answers, values_of
from danlu.data.shard import Shard
from danlu.data.statistics import Statistics
from danlu.data.tokenizer import Tokenizer
from danlu.errors import DataError

_OPEN_FILES = 256
_NUMBERED = 32
"""Bits of a sample's id that count the samples of its chunk, where there are more chunks than these."""


class Corpus:
    """Samples by index. The documents' tokens stay on disk; their bounds are in memory.

    A document of m tokens has m - 1 targets. Cut at the context, its pieces overlap by one token, so that every token
    after the document's first is a target exactly once. A piece of which nothing is learned is no sample. A prompt with
    its answers is one sample, the tokens of the prompt being there once; the context bounds it with its longest answer.

    Attributes:
        rules: what decides the samples.
        shards: what they are in.
        lengths: the number of targets of each sample.
        answers: whether these are prompts with answers.
        policy: what becomes of documents longer than the context.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        rules: Rules,
        *,
        num_files: int,
        numbers: Sequence[int] | None = None,
        limit: int | None = None,
    ) -> None:
        """Cut the documents of some shards into samples.

        Args:
            shards: complete parts of the token cache.
            rules: which documents are meant, and how they are cut.
            num_files: files that were read.
            numbers: of each shard, where they are a few of many; samples are known by them then.
            limit: samples after which no more are taken, nor documents.
        """
        self.rules = rules
        self.shards = list(shards)
        self.num_files = num_files
        placed = place(self.shards)
        self._documents = placed[rules.meant(placed)]
        lengths = self._documents["end"] - self._documents["start"]
        self._targets: Int64[np.ndarray, " D"] = np.maximum(lengths - 1, 0)
        learned = Learned.of(lengths, *spans_of(self.shards, self._documents))
        paths = paths_of(self.shards, self._documents)
        self.answers = bool(len(paths))
        self.policy: TooLong = "refuse" if self.answers and rules.too_long == "split" else rules.too_long
        self._bounded = paths.targets if self.answers else self._targets
        self._pieces = paths.cut(learned, rules) if self.answers else cut(self._targets, learned, rules)
        everything = np.arange(len(lengths))
        self._learned: Int64[np.ndarray, " D"] = learned.count(everything, np.zeros_like(everything), self._targets)
        if limit is not None and limit < len(self._pieces.length):
            self._pieces = self._pieces.only(slice(limit))
            last = int(self._pieces.document[-1]) + 1
            self._documents, self._targets = self._documents[:last], self._targets[:last]
            self._bounded = self._bounded[:last]
        self.lengths: Int64[np.ndarray, " S"] = self._pieces.length
        of = self._documents["shard"][self._pieces.document]
        self._first: Int64[np.ndarray, " C"] = np.searchsorted(of, np.arange(len(self.shards)))
        self._numbers = None if numbers is None else list(numbers)
        # of the shards and not of the corpus, which would then only go, maps and all, when cycles are collected
        self._tokens_of = functools.lru_cache(_OPEN_FILES)(functools.partial(_map_tokens, self.shards))

    @classmethod
    def open(
        cls,
        files: str | Sequence[str],
        tokenizer: Tokenizer,
        *,
        context: int,
        field: str | None = None,
        cache: str | Path | None = None,
        workers: int = 0,
        add_bos: bool = True,
        add_eos: bool = True,
    ) -> Corpus:
        """All samples of some files, by way of the token cache.

        Args:
            files: files, globs and folders.
            tokenizer: what encodes the documents.
            context: the most targets of a sample, at least 1.
            field: of rows, the field that holds the text, or a template of fields; by default their shape tells.
            cache: the cache's folder.
            workers: processes to encode with; 0 is as many as there are cores.
            add_bos: begin a text with the tokenizer's first token, if it has one.
            add_eos: end a text with the tokenizer's last token, if it has one.

        Raises:
            DataError: when a file or a row cannot be read, or no document has two tokens.
        """
        from danlu.data.collection import Collection  # which is made of corpora
        from danlu.data.prepare import build_encoder

        encoder = build_encoder(tokenizer, field=field, add_bos=add_bos, add_eos=add_eos)
        return Collection.open(files, encoder, Rules(context), cache=cache, workers=workers).whole()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> AnySample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        pieces = self._pieces
        which, offset, length = int(pieces.document[index]), int(pieces.offset[index]), int(pieces.length[index])
        document, targets = self._documents[which], int(self._targets[which])
        shard = self.shards[document["shard"]]
        start, origin = int(document["start"]), shard.place.of(int(document["record"]))
        tokens = self._tokens_of(int(document["shard"]))[start : start + targets + 1]
        spans = shard.spans[int(document["spans_start"]) : int(document["spans_end"])]
        num_bytes = int(document["num_bytes"]) * (int(pieces.learned[index]) / int(self._learned[which]))
        number, shape = self._id(index), shard.shapes[document["shape"]]
        rows = shard.answers[int(document["answers_start"]) : int(document["answers_end"])]
        if len(rows):
            prompt, answers, weights = cut_answers(tokens, rows, spans, self.rules)
            origin += " truncated" if length < targets else ""
            return Answers(prompt, answers, number, num_bytes, origin, weights, values_of(rows), shape)
        if length < targets:
            origin += f" tokens {offset}-{offset + length}"
        piece = tokens[offset : offset + length + 1].astype(np.int64)
        return Sample(piece, number, num_bytes, origin, weights_of(spans, offset + 1, length), shape)

    @property
    def context(self) -> int:
        """The most targets of a sample."""
        return self.rules.context

    @property
    def max_token(self) -> int:
        """The largest token id in what it was read from, to be compared with a model's vocabulary."""
        return max((shard.max_token for shard in self.shards), default=0)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides the samples: documents, tokenizer, options, rules and side of a split."""
        state = hashlib.blake2b(repr((self.rules.context, self.rules.too_long)).encode(), digest_size=16)
        for shard in self.shards:
            state.update(shard.path.name.encode())
        for column in ("shard", "record"):
            state.update(self._documents[column].tobytes())
        return state.hexdigest()

    @functools.cached_property
    def statistics(self) -> Statistics:
        """What it holds, counted."""
        return self.count(range(len(self.shards)))

    def count(self, shards: Sequence[int]) -> Statistics:
        """What some of its shards hold, counted; they are named by their numbers among all."""
        asked = np.isin(self._documents["shard"], list(shards))
        documents, targets = self._documents[asked], self._targets[asked]
        pieces = self._pieces.only(asked[self._pieces.document])
        lengths = documents["end"] - documents["start"]
        long, policy = int((self._bounded[asked] > self.context).sum()), self.policy
        refused = long if policy == "refuse" else 0
        return Statistics(
            files=self.num_files,
            documents=len(documents),
            empty=int((lengths == 0).sum()),
            too_short=int((lengths == 1).sum()),
            cut=long if policy == "split" else 0,
            truncated=long if policy.startswith("truncate") else 0,
            refused=refused,
            unlearned=int((targets > 0).sum()) - len(np.unique(pieces.document)) - refused,
            faults=sum(len(self.shards[number].faults) for number in shards),
            tokens=int(lengths.sum()),
            samples=len(pieces.length),
            targets=int(pieces.length.sum()),
            learned=int(pieces.learned.sum()),
            num_bytes=int(documents["num_bytes"].sum()),
            shapes=self._shapes(documents[lengths > 0]),
        )

    def too_long(self) -> list[tuple[int, int, int]]:
        """The documents that have more targets than the context (of answers the longest): shard, record, how many."""
        rows = np.flatnonzero(self._bounded > self.context)
        documents = self._documents[rows]
        columns = documents["shard"], documents["record"], self._bounded[rows]
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def _shapes(self, documents: np.ndarray) -> dict[str, int]:
        found: Counter[str] = Counter()
        numbers, counts = np.unique(documents["shard"] << _NUMBERED | documents["shape"], return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            shard, shape = divmod(number, 1 << _NUMBERED)
            found[self.shards[shard].shapes[shape]] += count
        return dict(found)

    def _id(self, index: int) -> int:
        if self._numbers is None:
            return index
        shard = int(self._documents["shard"][self._pieces.document[index]])
        return self._numbers[shard] << _NUMBERED | index - int(self._first[shard])


def _map_tokens(shards: Sequence[Shard], number: int) -> np.ndarray:
    try:
        return shards[number].map_tokens()
    except (OSError, ValueError) as fault:
        path = shards[number].path
        raise DataError("the token cache has lost a file", where=path, do="Start again; it is made anew.") from fault
