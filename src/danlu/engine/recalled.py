"""What a model that is only asked says of every answer, computed once and kept in the data's cache.

A file is of some samples by some weights: their fingerprints are its name. It holds, of each sample, the
log-probability of each answer, float32; read back, they come with the sample as `values["reference"]`, and the model is
not needed any more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64

from danlu.contracts import Source
from danlu.data import Answers, Data, DataConfig, store
from danlu.engine.update import Updater
from danlu.errors import DataError
from danlu.method.preference import reference_sums

_VERSION = 1
_AT_ONCE = 1024
"""Samples of a rank that are packed at a time."""


@dataclass(frozen=True)
class Recalled:
    """Log-probabilities of answers, by their samples' ids.

    Attributes:
        ids: rising.
        ends: where each sample's values end.
        values: all of them, one sample's after another's.
    """

    ids: Int64[np.ndarray, " N"]
    ends: Int64[np.ndarray, " N"]
    values: Float32[np.ndarray, " S"]

    @staticmethod
    def of(each: Mapping[int, Sequence[float]]) -> Recalled:
        """From each sample's values."""
        ids = sorted(each)
        ends = np.cumsum([len(each[sample]) for sample in ids], dtype=np.int64)
        return Recalled(
            np.array(ids, np.int64), ends, np.array([v for sample in ids for v in each[sample]], np.float32)
        )

    def to_bytes(self) -> Iterator[bytes]:
        """As a file has it."""
        yield np.array([len(self.ids)], "<i8").tobytes()
        yield self.ids.astype("<i8").tobytes()
        yield self.ends.astype("<i8").tobytes()
        yield self.values.astype("<f4").tobytes()

    @staticmethod
    def of_bytes(content: memoryview) -> Recalled:
        """From a file."""
        (count,) = np.frombuffer(content, "<i8", 1)
        ids, ends = np.frombuffer(content, "<i8", 2 * int(count), 8).reshape(2, int(count))
        return Recalled(ids, ends, np.frombuffer(content, "<f4", offset=8 * (1 + 2 * int(count))))

    def sample(self, sample: Answers) -> Answers:
        """A sample with what is known of it.

        Raises:
            DataError: when it is not there: the data are not those of then.
        """
        at = int(np.searchsorted(self.ids, sample.id))
        if at == len(self.ids) or int(self.ids[at]) != sample.id:
            raise DataError("the reference was not asked about this sample", where=sample.origin, do="Start again.")
        known = self.values[int(self.ends[at - 1]) if at else 0 : int(self.ends[at])].tolist()
        return replace(sample, values={**sample.values, "reference": tuple(known)})


@dataclass(frozen=True)
class RecallingSource:
    """A source whose samples come with what is known of them.

    Attributes:
        inner: where they come from.
        recalled: what is known.
    """

    inner: Source
    recalled: Recalled

    def draw(self) -> list[Any]:
        """See `Source`."""
        return [self.recalled.sample(sample) for sample in self.inner.draw()]

    @property
    def exhausted(self) -> bool:
        """See `Source`."""
        return self.inner.exhausted

    @property
    def epochs(self) -> float:
        """See `Source`."""
        return self.inner.epochs

    def state_dict(self) -> dict[str, Any]:
        """See `Source`: nothing of its own."""
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Source`."""
        self.inner.load_state_dict(state)


@dataclass(frozen=True)
class Recollection:
    """What is known of all data.

    Attributes:
        train: of what is trained on.
        held_out: of what is measured, if anything is.
        kept: whether it was there before it was asked for.
    """

    train: Recalled
    held_out: Recalled | None
    kept: bool


def recollect(updater: Updater, data: Data, config: DataConfig, **facts: Any) -> Recollection:
    """What the role "reference" says of all answers, from the data's cache or by asking it; all ranks call this.

    Args:
        updater: with the reference among its models.
        data: all of it.
        config: what it was made of.
        facts: as JSON, what the answers depend on beside the data: the reference's weights and precision.

    Raises:
        DataError: when the data cannot be read, or the answers not be kept.
    """
    measured = data.documents.held_out
    of = {**facts, "data": [part.fingerprint for part in data.documents.train], "version": _VERSION}
    apart = {**of, "held_out": [None if measured is None else measured.fingerprint, config.held_out_samples]}
    paths = [store.entry(store.cache_folder(config.cache), _digest(each)) for each in (of, apart)]
    train, kept = _recall(updater, _all(data), paths[0])
    if data.held_out is None:
        return Recollection(train, None, kept)
    corpus = data.held_out
    held_out, again = _recall(updater, (corpus[i] for i in range(len(corpus))), paths[1])
    return Recollection(train, held_out, kept and again)


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _all(data: Data) -> Iterator[Any]:
    """Every sample that is trained on, in the order of the files."""
    stream = data.train.stream(seed=0, shuffle=False, epochs=1)
    while not stream.exhausted:
        yield stream.take()


def _recall(updater: Updater, samples: Iterable[Any], path: Path) -> tuple[Recalled, bool]:
    """What is kept in a file, and whether it was there before; one rank of each machine writes it."""
    ranks = updater.parallel.ranks
    kept = store.read(path)
    if all(ranks.gather(kept is not None)):
        assert kept is not None
        return Recalled.of_bytes(kept), True
    recalled = Recalled.of(_asked(updater, samples))
    with ranks.together():
        if not ranks.local_rank:
            store.write(path, recalled.to_bytes())
    ranks.wait()
    return recalled, False


@torch.no_grad()
def _asked(updater: Updater, samples: Iterable[Any]) -> dict[int, list[float]]:
    models = updater.around
    ring, known, waiting = updater.parallel.ring, dict[int, list[float]](), iter(samples)
    while some := list(islice(waiting, _AT_ONCE * updater.parallel.shares)):
        groups, mine = updater.groups(some), list[tuple[int, list[float]]]()
        for members, batch in updater.passes(groups):
            values = iter(reference_sums(models, batch).tolist())
            for number in members:
                group = groups[number]
                assert group.sequences is not None
                mine.append((int(group.packed.sample[0]), list(islice(values, group.sequences.num))))
        for told in updater.parallel.ranks.gather(mine)[::ring]:
            known |= dict(told)
    return known
