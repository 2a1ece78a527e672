"""The samples of a collection one after another, in an order that is a function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from jaxtyping import Int64

from danlu.data.corpus import Corpus
from danlu.data.order import permutation, pools
from danlu.data.samples import AnySample
from danlu.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from danlu.data.collection import Collection

POOL_BYTES = 16 << 20
"""Bytes of documents that are mixed with one another."""


class Samples(Protocol):
    """Samples that come one after another; what is taken is remembered, not what was looked at."""

    @property
    def exhausted(self) -> bool:
        """Whether there are no more."""
        ...

    @property
    def epochs(self) -> float:
        """Passes over the data so far, the unfinished one by its share."""
        ...

    @property
    def lengths(self) -> Int64[np.ndarray, " S"]:
        """The targets of the samples that are at hand."""
        ...

    def peek(self) -> AnySample:
        """The next sample, which stays the next."""
        ...

    def take(self) -> AnySample:
        """The next sample, which is consumed."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, as JSON."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        ...


@dataclass(frozen=True)
class Progress:
    """What a stream has given out.

    Attributes:
        epoch: which pass over the collection it is in.
        pool: which pool of this pass.
        position: samples consumed of this pool.
        samples: samples consumed in all.
        tokens: targets consumed in all.
    """

    epoch: int = 0
    pool: int = 0
    position: int = 0
    samples: int = 0
    tokens: int = 0


class Stream:
    """The samples of a collection, pass after pass.

    A pass goes over all chunks, in an order of its own, a pool of neighbours in that order at a time; the samples of a
    pool are mixed with one another. So no more than one pool need be encoded before the first sample, while the next is
    being made. What fits one pool is mixed as a whole.
    """

    def __init__(
        self, collection: Collection, *, seed: int, shuffle: bool, epochs: int | None, pool_bytes: int = POOL_BYTES
    ) -> None:
        """Begin at the first sample; nothing is encoded before it is asked for.

        Args:
            collection: what to draw from.
            seed: another seed gives another order.
            shuffle: false keeps the order of the files.
            epochs: passes, after which there is nothing more; None is without end.
            pool_bytes: bytes of documents that are mixed with one another.
        """
        self.collection = collection
        self.progress = Progress()
        self._seed, self._shuffle, self._epochs, self._pool_bytes = seed, shuffle, epochs, pool_bytes
        self._epoch = -1
        self._pools: list[Int64[np.ndarray, " _"]] = []
        self._counts: list[int] = []
        self._open: tuple[int, int] | None = None
        self._corpus: Corpus | None = None
        self._order: Int64[np.ndarray, " S"] = np.zeros(0, np.int64)
        self._next: AnySample | None = None

    @property
    def exhausted(self) -> bool:
        """Whether all passes are consumed."""
        self._settle()
        return self._epochs is not None and self.progress.epoch >= self._epochs

    @property
    def epochs(self) -> float:
        """Passes over the collection so far, the unfinished one by its share of the documents."""
        if self.exhausted:
            return float(self.progress.epoch)
        counts, pool = self._counts, self.progress.pool
        done = sum(counts[:pool]) + counts[pool] * self.progress.position / len(self._order)
        return self.progress.epoch + done / sum(counts)

    @property
    def lengths(self) -> Int64[np.ndarray, " S"]:
        """The targets of the samples of the pool at hand."""
        self._settle()
        return np.zeros(0, np.int64) if self._corpus is None else self._corpus.lengths

    def peek(self) -> AnySample:
        """The next sample, which stays the next; there must be one.

        Raises:
            DataError: when what comes next cannot be read.
        """
        if self._next is None:
            self._settle()
            assert self._corpus is not None
            self._next = self._corpus[int(self._order[self.progress.position])]
        return self._next

    def take(self) -> AnySample:
        """The next sample, which is consumed."""
        sample, now = self.peek(), self.progress
        self.progress = replace(
            now, position=now.position + 1, samples=now.samples + 1, tokens=now.tokens + sample.num_targets
        )
        self._next = None
        return sample

    def state_dict(self) -> dict[str, Any]:
        """What was consumed so far, and of what, as plain JSON."""
        return {**asdict(self.progress), **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where a state was taken: the next sample is the one that came next then.

        Raises:
            DataError: when the state is of other data or another order of them.
            CheckpointError: when it is not a state of a stream.
        """
        identity = self._identity()
        counts: list[Any] = [state.get(field.name) for field in fields(Progress)]
        if not identity.keys() <= state.keys() or not all(isinstance(n, int) and n >= 0 for n in counts):
            raise CheckpointError("the source's state is incomplete", do="Resume from another checkpoint.")
        for name, value in identity.items():
            if state[name] != value:
                what = f"the checkpoint's data is not this data: {name} was {state[name]} and is {value}"
                raise DataError(what, do="Give the data, tokenizer, context and seed of then, or start a new run.")
        progress = Progress(*counts)
        if progress.pool or progress.position:
            self._enter(progress)
        if progress.pool >= max(len(self._pools), 1) or progress.position > len(self._order):
            what = f"the source's state is at sample {progress.position} of pool {progress.pool}, which is not there"
            raise CheckpointError(what, do="Resume from another checkpoint.")
        self.progress, self._next = progress, None

    def _identity(self) -> dict[str, Any]:
        order = {"seed": self._seed, "shuffle": self._shuffle, "pool_bytes": self._pool_bytes}
        return {"corpus": self.collection.fingerprint, **order}

    def _settle(self) -> None:
        """Be at a sample, or at the end: leave pools that are consumed or have none."""
        while self._epochs is None or self.progress.epoch < self._epochs:
            self._enter(self.progress)
            if self.progress.position < len(self._order):
                return
            if not len(self._order):
                self.collection.check_samples()
            turn, pool = divmod(self.progress.pool + 1, len(self._pools))
            self.progress = replace(self.progress, epoch=self.progress.epoch + turn, pool=pool, position=0)

    def _enter(self, progress: Progress) -> None:
        """Have a pool at hand, and begin to make the one after it."""
        if self._open == (progress.epoch, progress.pool):
            return
        if self._epoch != progress.epoch:
            self._epoch, self._pools = progress.epoch, self._pools_of(progress.epoch)
            self._counts = [int(self.collection.counts[pool].sum()) for pool in self._pools]
        if progress.pool >= len(self._pools):
            return
        self._corpus = self.collection.corpus(self._pools[progress.pool].tolist())
        size = len(self._corpus)
        self._order = permutation(size, self._seed, progress.epoch, progress.pool) if self._shuffle else np.arange(size)
        self._open = progress.epoch, progress.pool
        self._look_ahead(progress)

    def _look_ahead(self, progress: Progress) -> None:
        if progress.pool + 1 < len(self._pools):
            self.collection.prefetch(self._pools[progress.pool + 1].tolist())
        elif len(self._pools) > 1 and (self._epochs is None or progress.epoch + 1 < self._epochs):
            self.collection.prefetch(self._pools_of(progress.epoch + 1)[0].tolist())

    def _pools_of(self, epoch: int) -> list[Int64[np.ndarray, " _"]]:
        return pools(self.collection.sizes, self._pool_bytes, self._seed, epoch, self._shuffle)
