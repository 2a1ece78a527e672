"""One pass over the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import final, get_args

from danlu.insight.doctor.case import Case, Fate, Setting, TooLong
from danlu.insight.doctor.checks import CHECKS
from danlu.insight.doctor.diagnosis import Diagnosis, Side, by_severity
from danlu.insight.doctor.finding import Check
from danlu.insight.doctor.lengths import Lengths, Packing
from danlu.insight.doctor.row import Row
from danlu.insight.doctor.sample import Samples


def examine(
    train: Iterable[Row],
    held_out: Iterable[Row] = (),
    *,
    context: int,
    pack_tokens: int,
    too_long: TooLong,
    tokenizer_decode: Callable[[list[int]], str],
    special_ids: Collection[int] = (),
    end_ids: Collection[int] = (),
    rows_in_all: int | None = None,
    num_examples: int = 5,
    num_samples: int = 4,
    checks: Sequence[Check] = CHECKS,
) -> Diagnosis:
    """Look at all rows once, in a memory of some ten megabytes and 140 bytes a row, at its end for a moment 450.

    Args:
        train: the rows to train on.
        held_out: the rows to measure on.
        context: the most targets of a sample.
        pack_tokens: tokens of a pack.
        too_long: what becomes of rows longer than the context.
        tokenizer_decode: the text of some ids, special tokens written out.
        special_ids: the tokenizer's special tokens.
        end_ids: the tokens that end a text or a turn; none where rows need not end with one.
        rows_in_all: the rows that there are, where those given are only some of them.
        num_examples: how many rows a finding names.
        num_samples: how many training rows are decoded.
        checks: what to look for.
    """
    setting = Setting(
        context, too_long, tokenizer_decode, frozenset(special_ids), frozenset(end_ids), max(num_examples, 1)
    )
    surveys = [check(setting) for check in checks]
    sides = (_Count(), _Count())
    lengths, packing, samples = Lengths(), Packing(pack_tokens), Samples(num_samples)
    for side, rows in zip(sides, (train, held_out), strict=True):
        for row in rows:
            case = Case(row, side is sides[1], setting)
            side.add(case)
            for survey in surveys:
                survey.see(case)
            if not case.held_out and case.num_tokens:
                lengths.add(case.num_tokens)
            if not case.held_out and case.fate == "used":
                packing.add(case.lengths)
                samples.add(case)
    found = [finding for survey in surveys for finding in survey.findings()]
    return Diagnosis(
        train=sides[0].side(),
        held_out=sides[1].side(),
        findings=tuple(sorted(found, key=by_severity)),
        lengths=lengths.histogram(),
        packing_efficiency=packing.efficiency(),
        context=context,
        pack_tokens=pack_tokens,
        too_long=too_long,
        samples=samples.taken(),
        rows_in_all=rows_in_all,
    )


@final
class _Count:
    """Adds up one side."""

    def __init__(self) -> None:
        self._shapes: Counter[str] = Counter()
        self._fates: Counter[Fate] = Counter(dict.fromkeys(get_args(Fate), 0))
        self._samples = self._tokens = self._learned = 0

    def add(self, case: Case) -> None:
        self._shapes[case.row.shape] += 1
        self._fates[case.fate] += 1
        if case.fate == "used":
            self._samples += len(case.lengths)
            self._tokens += len(case.kept)
            self._learned += case.num_learned

    def side(self) -> Side:
        return Side(dict(self._shapes.most_common()), dict(self._fates), self._samples, self._tokens, self._learned)
