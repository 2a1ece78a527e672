"""What can be said of a row only beside the others."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from danlu.insight.doctor.case import Case, Setting, digest_of, normal
from danlu.insight.doctor.characters import SCRIPTS, code_points, excerpt, letters_by_script, main_script
from danlu.insight.doctor.finding import Finding, Survey, Tally

_MOST_CHARACTERS = 1 << 16
"""A text's script shows in its beginning."""
_FEW_LETTERS = 8
"""With fewer, a formula or a name decides."""


@final
class Languages(Survey):
    """Finds rows in another script than most; languages of one script it does not tell apart."""

    def __init__(self, setting: Setting) -> None:
        self._tallies = {name: Tally(setting.num_examples) for name in SCRIPTS}

    def see(self, case: Case) -> None:
        """See `Survey`."""
        if case.fate != "used":
            return
        letters = letters_by_script(code_points(case.said[:_MOST_CHARACTERS]))
        script = main_script(letters)
        if script is not None and letters.sum() >= _FEW_LETTERS:
            self._tallies[script].add(case.row.where, f"it is mostly {script}")

    def findings(self) -> Iterator[Finding]:
        """See `Survey`."""
        ranked = sorted(self._tallies.items(), key=lambda item: -item[1].count)
        (most, bulk), others = ranked[0], [tally for _, tally in ranked[1:]]
        found = Tally(bulk.limit, sum(tally.count for tally in others))
        for example in itertools.chain.from_iterable(tally.examples for tally in others):
            found.show(example.where, example.what)
        rows = bulk.count + found.count
        shares = [f"{name} {tally.count / rows:.1%}" for name, tally in ranked if tally.count]
        title = f"rows in another script than {most} ({', '.join(shares)})"
        return found.finding("other_scripts", "note", title, "Keep them if they are meant.")


_OUTLYING = 32
"""So many times shorter or longer than the middle one, an answer is of another kind than the rest, or was cut."""
_FINENESS = 4
"""Bins a doubling: lengths are counted to a fifth."""


@final
class AnswerLengths(Survey):
    """Finds answers far shorter or far longer than the middle one, from a histogram and the few most extreme."""

    def __init__(self, setting: Setting) -> None:
        self._limit = setting.num_examples
        self._num_answers = 0
        self._bins: Counter[int] = Counter()
        self._shortest: list[tuple[int, int, str, str]] = []
        self._longest: list[tuple[int, int, str, str]] = []

    def see(self, case: Case) -> None:
        """See `Survey`."""
        for content in case.contents:
            length = len(content.text.strip())
            if not content.answer or not length:
                continue
            self._num_answers += 1
            self._bins[_bin(length)] += 1
            for heap, rank in ((self._shortest, -length), (self._longest, length)):
                entry = (rank, -self._num_answers, case.row.where, content.place)  # of equals the first is kept
                if len(heap) < self._limit:
                    heapq.heappush(heap, entry)
                else:
                    heapq.heappushpop(heap, entry)

    def findings(self) -> Iterator[Finding]:
        """See `Survey`."""
        if not self._num_answers:
            return
        middle = self._middle()
        short = sum(count for at, count in self._bins.items() if at < _bin(middle / _OUTLYING))
        long = sum(count for at, count in self._bins.items() if at > _bin(middle * _OUTLYING))
        for word, heap, count in (("short", self._shortest, short), ("long", self._longest, long)):
            tally = Tally(self._limit, count)
            for rank, _, where, place in sorted(heap, reverse=True)[:count]:
                tally.show(where, f"{place} has {abs(rank):,} characters")
            title = f"very {word} answers (the middle one has about {middle:,.0f} characters)"
            do = "Look whether they are whole, and answers at all."
            yield from tally.finding(f"{word}_answers", "note", title, do)

    def _middle(self) -> float:
        """The median length, to the fineness of the bins."""
        bins = sorted(self._bins)
        sums = itertools.accumulate(self._bins[at] for at in bins)
        middle = next(at for at, num in zip(bins, sums, strict=True) if 2 * num >= self._num_answers)
        return float(2 ** ((middle + 0.5) / _FINENESS))


def _bin(length: float) -> int:
    return math.floor(_FINENESS * math.log2(length))


_SENTENCE = 20
"""Shorter answers are labels and numbers, which may well be many rows'."""
_AT_LEAST, _SHARE = 5, 0.001
_KEPT_ANSWERS = 50_000


@dataclass
class _Answer:
    """An answer that was met: where first, how it begins, and how often."""

    where: str
    text: str
    count: int = 0


@final
class RepeatedAnswers(Survey):
    """Finds sentences that answer many rows, in a bounded table.

    When the table is full the rarest are forgotten, mostly those met once, so of very many rows a count may be low by a
    few; an answer that a thousandth of the rows have stays.

    References:
        Manku and Motwani, 2002, "Approximate frequency counts over data streams",
        https://www.vldb.org/conf/2002/S10P03.pdf
    """

    def __init__(self, setting: Setting) -> None:
        self._limit = setting.num_examples
        self._num_answers = 0
        self._answers: dict[int, _Answer] = {}

    def see(self, case: Case) -> None:
        """See `Survey`."""
        for content in case.contents:
            if not content.answer or len(content.text) < _SENTENCE:
                continue
            self._num_answers += 1
            digest = digest_of(normal(content.text))
            if digest not in self._answers:
                self._answers[digest] = _Answer(case.row.where, excerpt(content.text))
            self._answers[digest].count += 1
            if len(self._answers) > _KEPT_ANSWERS:
                self._forget()

    def findings(self) -> Iterator[Finding]:
        """See `Survey`."""
        many = max(_AT_LEAST, _SHARE * self._num_answers)
        found = sorted((a for a in self._answers.values() if a.count >= many), key=lambda answer: -answer.count)
        tally = Tally(self._limit, sum(answer.count for answer in found))
        for answer in found[: self._limit]:
            tally.show(answer.where, f'the first of {answer.count:,} answers "{answer.text}"')
        title = f"answers that are given {many:,.0f} times or more"
        return tally.finding("repeated_answers", "note", title, "Remove refusals and set phrases that are not meant.")

    def _forget(self) -> None:
        least = min(answer.count for answer in self._answers.values())
        self._answers = {key: answer for key, answer in self._answers.items() if answer.count > least}
