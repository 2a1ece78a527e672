"""Several collections as one: each next sample is of one of them, drawn by its weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int64

from danlu.data.collection import Collection
from danlu.data.corpus import Corpus
from danlu.data.order import uniform
from danlu.data.samples import AnySample
from danlu.data.statistics import Statistics
from danlu.data.stream import POOL_BYTES, Stream
from danlu.errors import CheckpointError

_PART = 56
"""The bit of a sample's id from which on it tells the part."""


@dataclass(frozen=True)
class Portion:
    """A part of a mixture.

    Attributes:
        collection: what is drawn from.
        weight: how often, in proportion to the others' weights.
        seed: of its order; None is the run's.
        epochs: passes over it; None is the run's.
    """

    collection: Collection
    weight: float
    seed: int | None = None
    epochs: int | None = None


class Mixture:
    """Several collections, and how much is drawn of each."""

    def __init__(self, portions: Sequence[Portion]) -> None:
        """Make one of its parts."""
        self.portions = tuple(portions)

    @property
    def num_documents(self) -> int:
        """Documents of all parts."""
        return sum(portion.collection.num_documents for portion in self.portions)

    @property
    def num_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(portion.collection.num_bytes for portion in self.portions)

    @property
    def statistics(self) -> Statistics:
        """What has been read of its parts so far, counted."""
        return Statistics.total(portion.collection.statistics for portion in self.portions)

    @property
    def share_read(self) -> float:
        """The share of its documents that `statistics` counts."""
        read = sum(p.collection.share_read * p.collection.num_documents for p in self.portions)
        return read / max(self.num_documents, 1)

    @property
    def max_token(self) -> int:
        """The largest token that has been read."""
        return max(portion.collection.max_token for portion in self.portions)

    @property
    def expected(self) -> tuple[int, int]:
        """About how many samples and targets a pass over all parts has, from what has been read."""
        each = [portion.collection.expected for portion in self.portions]
        return sum(samples for samples, _ in each), sum(targets for _, targets in each)

    def bound_tokens(self, vocabulary: int) -> None:
        """Refuse tokens that a model has not, now and whenever more is read.

        Raises:
            DataError: when there is one.
        """
        for portion in self.portions:
            portion.collection.bound_tokens(vocabulary)

    def stream(
        self, *, seed: int, shuffle: bool = True, epochs: int | None = None, pool_bytes: int = POOL_BYTES
    ) -> MixtureStream:
        """Its samples in the order of a run; see `MixtureStream`."""
        return MixtureStream(self, seed=seed, shuffle=shuffle, epochs=epochs, pool_bytes=pool_bytes)

    def close(self) -> None:
        """End the processes that encode."""
        for portion in self.portions:
            portion.collection.close()


class Joined:
    """Several corpora as one, one after another.

    Attributes:
        max_token: the largest token id.
        lengths: the number of targets of each sample.
        statistics: what they hold, counted.
    """

    def __init__(self, corpora: Sequence[Corpus]) -> None:
        """Join some."""
        self._corpora = tuple(corpora)
        self._ends = np.cumsum([len(corpus) for corpus in corpora])
        self.max_token = max(corpus.max_token for corpus in corpora)
        self.lengths: Int64[np.ndarray, " S"] = np.concatenate([corpus.lengths for corpus in corpora])
        self.statistics = Statistics.total(corpus.statistics for corpus in corpora)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> AnySample:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._corpora[number][index - (int(self._ends[number - 1]) if number else 0)]


class MixtureStream:
    """The samples of a mixture, one after another.

    Which part the n-th sample is of is a function of (seed, n) and of which parts are left: those that have passes of
    their own end by themselves, and the others are drawn on in proportion.
    """

    def __init__(
        self, mixture: Mixture, *, seed: int, shuffle: bool, epochs: int | None, pool_bytes: int = POOL_BYTES
    ) -> None:
        """Begin at the first sample.

        Args:
            mixture: what to draw from.
            seed: of the choice, and of the order of parts that name none.
            shuffle: false keeps each part's order of its files.
            epochs: passes over parts that do not say how many; None is without end.
            pool_bytes: bytes of documents of a part that are mixed with one another.
        """
        self._seed, self._epochs = seed, epochs
        self._portions = mixture.portions
        self._streams = [
            Stream(
                portion.collection,
                seed=seed if portion.seed is None else portion.seed,
                shuffle=shuffle,
                epochs=epochs if portion.epochs is None else portion.epochs,
                pool_bytes=pool_bytes,
            )
            for portion in mixture.portions
        ]
        self._drawn = 0
        self._next: tuple[int, AnySample] | None = None

    @property
    def exhausted(self) -> bool:
        """Whether all parts are."""
        ended = [stream.exhausted for stream in self._streams]  # each of them reads what comes first
        return all(ended)

    @property
    def epochs(self) -> float:
        """Passes so far, by documents of all parts; where the run has a number of them, its end is that number."""
        if self._epochs is not None and self.exhausted:
            return float(self._epochs)
        documents = [portion.collection.num_documents for portion in self._portions]
        done = sum(count * stream.epochs for count, stream in zip(documents, self._streams, strict=True))
        if self._epochs is None:
            return done / sum(documents)
        wanted = [self._epochs if portion.epochs is None else portion.epochs for portion in self._portions]
        return self._epochs * done / sum(count * passes for count, passes in zip(documents, wanted, strict=True))

    @property
    def lengths(self) -> Int64[np.ndarray, " S"]:
        """The targets of the samples of the pools at hand."""
        return np.concatenate([stream.lengths for stream in self._streams])

    def peek(self) -> AnySample:
        """The next sample, which stays the next; there must be one.

        Raises:
            DataError: when what comes next cannot be read.
        """
        if self._next is None:
            part = self._choose()
            sample = self._streams[part].peek()
            self._next = part, replace(sample, id=sample.id | part << _PART)
        return self._next[1]

    def take(self) -> AnySample:
        """The next sample, which is consumed."""
        sample = self.peek()
        assert self._next is not None
        self._streams[self._next[0]].take()
        self._drawn, self._next = self._drawn + 1, None
        return sample

    def state_dict(self) -> dict[str, Any]:
        """What was consumed so far, and of what, as plain JSON."""
        return {"drawn": self._drawn, "parts": [stream.state_dict() for stream in self._streams]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where a state was taken: the next sample is the one that came next then.

        Raises:
            DataError: when the state is of other data or another order of them.
            CheckpointError: when it is not a state of a mixture of so many parts.
        """
        drawn, parts = state.get("drawn"), state.get("parts")
        if not isinstance(drawn, int) or not isinstance(parts, list) or len(parts) != len(self._streams):
            what = f"the source's state is not of a mixture of {len(self._streams)} parts"
            raise CheckpointError(what, do="Resume from another checkpoint.")
        for stream, part in zip(self._streams, parts, strict=True):
            stream.load_state_dict(part)
        self._drawn, self._next = drawn, None

    def _choose(self) -> int:
        left = [number for number, stream in enumerate(self._streams) if not stream.exhausted]
        weights = [self._portions[number].weight for number in left]
        at = uniform(self._drawn, "mixture", self._seed) * sum(weights)
        for number, weight in zip(left, weights, strict=True):
            at -= weight
            if at < 0:
                return number
        return left[-1]
