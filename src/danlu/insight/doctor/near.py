"""Texts that are nearly the same, found without comparing all with all, from a hundred bytes a text.

The likeness of two texts is the share of shingles (three words in a row) that they have in common, of all that either
has: their Jaccard similarity. The smallest of a text's shingles under a random order is also another text's smallest
with just that chance, so the share of `NUM_HASHES` such orders in which two texts agree estimates it. A sketch keeps a
byte of each smallest shingle. Texts are compared where all bytes of one of the sketch's bands are equal.

References:
    Broder, 1997, "On the resemblance and containment of documents", https://doi.org/10.1109/SEQUEN.1997.666900
    Li and König, 2010, "b-bit minwise hashing", https://arxiv.org/abs/0910.3349
    Leskovec, Rajaraman and Ullman, 2014, "Mining of massive datasets", chapter 3, http://www.mmds.org
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8, UInt32

from danlu.insight.doctor.characters import code_points, words_of

SHINGLE = 3
"""Words of a shingle: three tell what is said, and one word changed in a hundred changes three of them."""
ALIKE = 0.7
"""Texts of this likeness are nearly the same: a hundred words, of which six differ."""
NUM_BANDS, _BAND = 20, 5
NUM_HASHES = NUM_BANDS * _BAND
"""Texts of likeness s meet with chance 1 - (1 - s^5)^20: 0.98 at 0.7, all but always above, 0.47 at 0.5."""
_CHANCE = 1 / 256
"""How often bytes agree that come of different shingles."""
_MOST_CHARACTERS = 1 << 18
"""The text of a book; what comes after it is not looked at."""
_BATCH_CHARACTERS = 1 << 20
_PAIRS = 1 << 16
_SPACE = np.zeros(1, np.uint32)


class Sketches:
    """Sketches of texts, `NUM_HASHES` bytes each; a text of fewer than `SHINGLE` words has none."""

    def __init__(self) -> None:
        self._waiting: list[UInt32[np.ndarray, " _"]] = []
        self._num_characters = 0
        self._done: list[UInt8[np.ndarray, "_ H"]] = [np.zeros((0, NUM_HASHES), np.uint8)]
        self._sketched: list[Bool[np.ndarray, " _"]] = [np.zeros(0, bool)]

    def add(self, text: str) -> None:
        """Sketch a text."""
        codes = code_points(text[:_MOST_CHARACTERS])
        self._waiting.append(codes)
        self._num_characters += len(codes)
        if self._num_characters >= _BATCH_CHARACTERS:
            self._sketch_waiting()

    def taken(self) -> tuple[UInt8[np.ndarray, "N H"], Bool[np.ndarray, " N"]]:
        """The sketches of all texts in order, and which of them have one."""
        self._sketch_waiting()
        self._done, self._sketched = [np.concatenate(self._done)], [np.concatenate(self._sketched)]
        return self._done[0], self._sketched[0]

    def _sketch_waiting(self) -> None:
        """Sketch many texts at once: one order at a time over the shingles of all of them."""
        texts, self._waiting, self._num_characters = self._waiting, [], 0
        if not texts:
            return
        ends = np.cumsum([len(text) + 1 for text in texts])
        words, starts = words_of(np.concatenate([part for text in texts for part in (text, _SPACE)]))
        owner = np.searchsorted(ends, starts, side="right")
        shingles, owner = _shingles(words, owner)
        sketches = np.zeros((len(texts), NUM_HASHES), np.uint8)
        heads = np.flatnonzero(np.diff(owner, prepend=-1))
        if len(heads):
            held = owner[heads]
            for order, (factor, shift) in enumerate(_ORDERS):
                smallest = np.minimum.reduceat(shingles * factor + shift, heads)
                sketches[held, order] = (smallest * _MIX_32) >> np.uint32(24)
        self._done.append(sketches)
        self._sketched.append(np.isin(np.arange(len(texts)), owner))


@dataclass(frozen=True, eq=False)
class Nearest:
    """Of each text the earlier one that it is most like, or -1 where it is like none.

    Attributes:
        of: which.
        likeness: the estimated share of shingles in common, in [0, 1].
    """

    of: Int64[np.ndarray, " N"]
    likeness: Float[np.ndarray, " N"]

    def roots(self) -> Int64[np.ndarray, " N"]:
        """Of each text the first of its cluster: itself where it is like no earlier one."""
        roots = np.where(self.of < 0, np.arange(len(self.of)), self.of)
        while not np.array_equal(roots[roots], roots):
            roots = roots[roots]
        return roots


def nearest(sketches: UInt8[np.ndarray, "N H"], first_of_second: int, alike: float = ALIKE) -> tuple[Nearest, Nearest]:
    """For each text, an earlier one like it.

    Of those that share a band, a text is compared with the first and with its neighbour, so the work is linear in the
    number of texts however many of them are alike.

    Args:
        sketches: of texts in two sets, all of the first set before those of the second.
        first_of_second: where the second set begins.
        alike: the likeness from which texts are nearly the same.

    Returns:
        The nearest in the same set, and of the second set's texts the nearest in the first.
    """
    count = len(sketches)
    second = np.arange(count) >= first_of_second
    of = np.full((2, count), -1, np.int64)
    likeness = np.zeros((2, count))
    for band in range(NUM_BANDS):
        keys = _keys(sketches[:, band * _BAND : (band + 1) * _BAND])
        order = np.argsort(keys, kind="stable")
        new = np.diff(keys[order], prepend=~keys[order[:1]]) != 0
        heads = order[np.maximum.accumulate(np.where(new, np.arange(count), 0))]
        for others in (heads, np.roll(order, 1)):
            texts, earlier = order[~new], others[~new]
            across = (second[texts] != second[earlier]).astype(np.int64)
            share = _likeness(sketches, texts, earlier)
            better = (share >= alike) & (share > likeness[across, texts])
            of[across[better], texts[better]] = earlier[better]
            likeness[across[better], texts[better]] = share[better]
    return Nearest(of[0], likeness[0]), Nearest(of[1], likeness[1])


def _shingles(
    words: np.ndarray, owner: Int64[np.ndarray, " W"]
) -> tuple[UInt32[np.ndarray, " K"], Int64[np.ndarray, " K"]]:
    """Hashes of all runs of `SHINGLE` words of one text, and whose they are."""
    count = max(len(words) - SHINGLE + 1, 0)
    mixed = sum(words[at : at + count] * _PLACES[at] for at in range(SHINGLE))
    whole = owner[:count] == owner[SHINGLE - 1 :] if count else np.zeros(0, bool)
    hashes = np.asarray(mixed, np.uint64)[whole]
    hashes = (hashes ^ hashes >> np.uint64(31)) * _MIX_64
    return (hashes >> np.uint64(32)).astype(np.uint32), owner[:count][whole]


def _keys(band: UInt8[np.ndarray, "N B"]) -> Int64[np.ndarray, " N"]:
    """A band's bytes as one number."""
    keys = np.zeros(len(band), np.int64)
    for column in band.T:
        keys = keys << 8 | column
    return keys


def _likeness(
    sketches: UInt8[np.ndarray, "N H"], texts: Int64[np.ndarray, " P"], others: Int64[np.ndarray, " P"]
) -> Float[np.ndarray, " P"]:
    """The estimated likeness of pairs, a bounded number of pairs at a time."""
    agree = np.empty(len(texts))
    for start in range(0, len(texts), _PAIRS):
        some = slice(start, start + _PAIRS)
        agree[some] = (sketches[texts[some]] == sketches[others[some]]).mean(axis=1)
    return np.maximum(agree - _CHANCE, 0) / (1 - _CHANCE)


_MIX_64 = np.uint64(0x9E3779B97F4A7C15)
_MIX_32 = np.uint32(0x9E3779B1)
_PLACES = np.random.default_rng(1).integers(1 << 63, size=SHINGLE, dtype=np.uint64) << np.uint64(1) | np.uint64(1)
_ORDERS = np.random.default_rng(2).integers(1 << 32, size=(NUM_HASHES, 2), dtype=np.uint32) | np.array(
    [1, 0], np.uint32
)
