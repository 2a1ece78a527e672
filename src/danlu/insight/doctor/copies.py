"""Rows that repeat another, word for word or nearly, and held-out rows that are learned from."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import final

import numpy as np
from jaxtyping import Bool, Int64

from danlu.insight.doctor.case import Case, Setting
from danlu.insight.doctor.finding import Finding, Survey, Tally
from danlu.insight.doctor.near import Nearest, Sketches, nearest
from danlu.insight.doctor.places import Places

_SAME = "A row that comes twice counts twice; remove copies that are not meant."
_LEARNED = "What is measured on them is memory: remove them from one side."


@final
class Copies(Survey):
    """Compares all rows that are used, on both sides, by a hash, a sketch and a place, 120 bytes a row."""

    def __init__(self, setting: Setting) -> None:
        self._limit = setting.num_examples
        self._digests = array("Q")
        self._sketches = Sketches()
        self._places = Places()
        self._num_train = 0

    def see(self, case: Case) -> None:
        """See `Survey`."""
        if case.fate != "used":
            return
        self._digests.append(case.digest)
        self._sketches.add(case.said)
        self._places.add(case.row.where)
        self._num_train += not case.held_out

    def findings(self) -> Iterator[Finding]:
        """See `Survey`."""
        first = self._first_of_same()
        kept = np.flatnonzero(first == np.arange(len(first)))
        sketches, sketched = self._sketches.taken()
        kept = kept[sketched[kept]]
        beside, across = nearest(sketches[kept], int(np.searchsorted(kept, self._num_train)))

        copy = first < np.arange(len(first))
        leak = copy & (first < self._num_train) & (np.arange(len(first)) >= self._num_train)
        yield from self._exact("leaks", "held-out rows that are also trained on", first, leak, _LEARNED)
        yield from self._near("near_leaks", "held-out rows that are nearly trained on", kept, across, _LEARNED)
        yield from self._exact("duplicates", "rows that repeat an earlier one", first, copy & ~leak, _SAME)
        yield from self._near("near_duplicates", "rows that nearly repeat an earlier one", kept, beside, _SAME)

    def _first_of_same(self) -> Int64[np.ndarray, " N"]:
        """Of each row the first that says the same."""
        digests = np.frombuffer(self._digests, np.uint64) if self._digests else np.zeros(0, np.uint64)
        _, first, group = np.unique(digests, return_index=True, return_inverse=True)
        return np.asarray(first[group.reshape(-1)], np.int64)

    def _exact(
        self, name: str, title: str, first: Int64[np.ndarray, " N"], found: Bool[np.ndarray, " N"], do: str
    ) -> Iterator[Finding]:
        tally = Tally(self._limit, int(found.sum()))
        for row in np.flatnonzero(found)[: self._limit].tolist():
            tally.show(self._places[row], f"the same as {self._places[int(first[row])]}")
        return tally.finding(name, "warning", title, do)

    def _near(self, name: str, title: str, kept: Int64[np.ndarray, " M"], like: Nearest, do: str) -> Iterator[Finding]:
        found = np.flatnonzero(like.of >= 0)
        tally = Tally(self._limit, len(found))
        for row in found[np.argsort(-like.likeness[found], kind="stable")][: self._limit].tolist():
            earlier = self._places[int(kept[like.of[row]])]
            tally.show(self._places[int(kept[row])], f"{like.likeness[row]:.0%} the same as {earlier}")
        clusters = len(np.unique(like.roots()[found]))
        where = f", in {clusters:,} cluster{'s' * (clusters != 1)}" if clusters else ""
        return tally.finding(name, "warning" if "leaks" in name else "note", title + where, do)
