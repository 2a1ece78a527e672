"""What may be wrong with prompts and their answers: a row by itself, and all of them together.

References:
    Singhal et al., 2023, "A long way to go: investigating length correlations in RLHF",
    https://arxiv.org/abs/2310.03716
    Ethayarajh et al., 2024, "KTO: model alignment as prospect theoretic optimization",
    https://arxiv.org/abs/2402.01306
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import final

import numpy as np

from danlu.data.document import Completion, Judged, Preference
from danlu.insight.doctor.case import Case, Setting
from danlu.insight.doctor.characters import excerpt
from danlu.insight.doctor.finding import Finding, Survey, Tally, rule
from danlu.units import percent

_BIASED = 0.7
"""If the longer answer is the chosen one, or the rejected one, so often, length alone tells them apart."""
_FEW = 20
"""Of fewer rows nothing is said with a warning: chance alone would give one."""
_RARE = 0.1
"""With a smaller share of one kind the other drowns it; down to about here, weights can make up for it."""
_REPEATED = 20
"""Characters of a prompt from which on two answers hardly begin with it by chance."""
_SIDES = ("chosen", "rejected")
_NAMES = {True: "desirable", False: "undesirable"}
_SOUND = "Nothing need be done."


@rule("warning", "pairs whose two answers are the same", "Remove them: nothing can be learned from them.")
def identical_pair(case: Case) -> str | None:
    """Chosen and rejected are equal, token for token."""
    if case.fate != "used" or len(case.answers) != 2 or case.row.ids is None:
        return None
    chosen, rejected = (case.row.ids[own] for own in case.answers)
    return f"both answers are the same {len(chosen):,} tokens" if np.array_equal(chosen, rejected) else None


@rule(
    "warning",
    "pairs whose prompt is not what their answers follow",
    "The conversations in chosen and rejected are learned from; look whether the prompt is another row's.",
)
def prompt_mismatch(case: Case) -> str | None:
    """The row names a prompt that none of the messages is with which both conversations begin."""
    document = case.row.document
    stray = document.stray if isinstance(document, Preference) else None
    return None if stray is None else f'its prompt is "{excerpt(stray)}", and both conversations begin otherwise'


@rule("warning", "pairs whose answers repeat the prompt", "Cut the prompt off the answers, or leave out the field.")
def repeated_prompt(case: Case) -> str | None:
    """Both answers begin with the whole prompt, which then comes twice."""
    document = case.row.document
    if not isinstance(document, Preference):
        return None
    answers = [path for path in document.paths.values() if isinstance(path, Completion)]
    asked = answers[0].prompt.strip() if answers else ""
    if len(asked) < _REPEATED or not all(path.completion.strip().startswith(asked) for path in answers):
        return None
    return f'both answers begin with "{excerpt(asked)}"'


@final
class AnswerBias(Survey):
    """Compares how long chosen and rejected answers are: a model may learn that longer is better, and nothing else."""

    def __init__(self, setting: Setting) -> None:
        self._limit = setting.num_examples
        self._sums = np.zeros(2, np.int64)
        self._longer = np.zeros(2, np.int64)
        self._num_pairs = 0
        self._widest: tuple[list[tuple[int, int, str]], ...] = ([], [])

    def see(self, case: Case) -> None:
        """See `Survey`."""
        if case.fate != "used" or len(case.answers) != 2 or case.held_out:
            return
        sizes = [own.stop - own.start for own in case.answers]
        self._num_pairs += 1
        self._sums += sizes
        for side, heap in enumerate(self._widest):
            beyond = sizes[side] - sizes[1 - side]
            if beyond <= 0:
                continue
            self._longer[side] += 1
            heapq.heappush(heap, (beyond, -self._num_pairs, case.row.where))
            if len(heap) > self._limit:
                heapq.heappop(heap)

    def findings(self) -> Iterator[Finding]:
        """See `Survey`."""
        if not self._longer.any():
            return
        side = int(self._longer[1] > self._longer[0])
        longer, shorter = _SIDES[side], _SIDES[1 - side]
        shares, means = self._longer / self._num_pairs, self._sums / self._num_pairs
        tally = Tally(self._limit, self._num_pairs)
        for beyond, _, where in sorted(self._widest[side], reverse=True):
            tally.show(where, f"the {longer} answer has {beyond:,} tokens more than the {shorter} one")
        each = (f"{_SIDES[i]} {means[i]:,.0f} tokens on average, longer in {percent(shares[i])}" for i in range(2))
        biased = shares[side] >= _BIASED and self._num_pairs >= _FEW
        do = "A model may learn length and little else: balance the pairs, or use a length-normalised loss."
        title = f"pairs by length ({'; '.join(each)})"
        yield from tally.finding("length_bias", "warning" if biased else "note", title, do if biased else _SOUND)


@final
class LabelBalance(Survey):
    """Counts desirable and undesirable answers."""

    def __init__(self, setting: Setting) -> None:
        self._rows = {desirable: Tally(setting.num_examples) for desirable in (True, False)}

    def see(self, case: Case) -> None:
        """See `Survey`."""
        if case.fate == "used" and isinstance(case.row.document, Judged) and not case.held_out:
            desirable = case.row.document.desirable
            self._rows[desirable].add(case.row.where, f"it is {_NAMES[desirable]}")

    def findings(self) -> Iterator[Finding]:
        """See `Survey`."""
        good, bad = (self._rows[desirable] for desirable in (True, False))
        total = good.count + bad.count
        if not total:
            return
        fewer, more = sorted((good, bad), key=lambda tally: tally.count)
        tally = Tally(fewer.limit, total, fewer.examples or more.examples)
        title = f"judged answers by kind ({good.count:,} desirable, {bad.count:,} undesirable)"
        lopsided = total >= _FEW and fewer.count < _RARE * total
        do = f"Add {_NAMES[fewer is good]} answers, or weigh them more." if lopsided else _SOUND
        yield from tally.finding("label_balance", "warning" if lopsided else "note", title, do)
