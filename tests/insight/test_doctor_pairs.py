"""What the doctor says of preferences."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from doctor_rows import SPECIAL, TURN, diagnose, found, judged, pair
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console as Rich

from danlu.data.cutting import Learned, Paths, Rules
from danlu.insight.doctor import Diagnosis, Row, show, write_html


def pairs(sizes: list[tuple[int, int]]) -> list[Row]:
    """Pairs whose answers have so many characters."""
    return [pair(f"question {n}?", "c" * a, "r" * b, n + 1) for n, (a, b) in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "severity", "title", "example"),
    [
        (
            [(9, 3)] * 15 + [(3, 9)] * 5,
            "warning",
            "pairs by length (chosen 8 tokens on average, longer in 75 %; "
            "rejected 6 tokens on average, longer in 25 %)",
            ("a.jsonl:1", "the chosen answer has 6 tokens more than the rejected one"),
        ),
        (
            [(4, 4)] * 4 + [(3, 9)] * 15 + [(3, 12)],
            "warning",
            "pairs by length (chosen 4 tokens on average, longer in 0 %; rejected 9 tokens on average, longer in 80 %)",
            ("a.jsonl:20", "the rejected answer has 9 tokens more than the chosen one"),
        ),
        ([(9, 3)] * 13 + [(3, 9)] * 7, "note", None, None),
        ([(9, 3)] * 19, "note", None, None),
    ],
)
def test_length_bias(
    sizes: list[tuple[int, int]], severity: str, title: str | None, example: tuple[str, str] | None
) -> None:
    finding = found(diagnose(pairs(sizes)), "length_bias")
    assert finding is not None
    assert (finding.severity, finding.count) == (severity, len(sizes))
    if title is not None:
        assert finding.title == title
    if example is not None:
        assert (finding.examples[0].where, finding.examples[0].what) == example


@pytest.mark.parametrize(
    ("good", "bad", "severity", "do"),
    [
        (19, 1, "warning", "Add undesirable answers, or weigh them more."),
        (0, 20, "warning", "Add desirable answers, or weigh them more."),
        (17, 3, "note", "Nothing need be done."),
        (1, 18, "note", "Nothing need be done."),
    ],
)
def test_label_balance(good: int, bad: int, severity: str, do: str) -> None:
    rows = [judged(f"question {n}", f"answer {n}", n + 1, desirable=n < good) for n in range(good + bad)]
    finding = found(diagnose(rows), "label_balance")
    assert finding is not None
    assert (finding.severity, finding.count, finding.do) == (severity, good + bad, do)
    assert finding.examples
    assert finding.title == f"judged answers by kind ({good} desirable, {bad} undesirable)"


def test_rows_of_other_kinds_are_not_compared() -> None:
    assert found(diagnose([judged("a", "b")]), "length_bias") is None
    assert found(diagnose(pairs([(3, 4)])), "label_balance") is None
    assert found(diagnose(pairs([(4, 4)] * 30)), "length_bias") is None
    held_out = diagnose(pairs([(3, 4)]), pairs([(9, 4)] * 30))
    assert found(held_out, "length_bias").count == 1  # type: ignore[union-attr]


@given(
    st.lists(st.tuples(*[st.integers(1, 9)] * 3), min_size=1, max_size=5),
    st.integers(1, 40),
    st.sampled_from(["split", "refuse", "truncate_left", "truncate_right"]),
)
def test_the_doctor_counts_what_a_run_would_cut(sizes: list[tuple[int, int, int]], context: int, policy: str) -> None:
    rows = [pair("q" * q, "c" * a, "r" * b, n + 1) for n, (q, a, b) in enumerate(sizes)]
    side = diagnose(rows, context=context, too_long=policy).train
    documents = [n for n, row in enumerate(rows) for _ in row.answers]
    starts = [start for row in rows for start in row.answers]
    ends = [end for row in rows for end in (*row.answers[1:], len(row.ids))]  # type: ignore[arg-type]
    weights = np.concatenate([row.weights for row in rows])  # type: ignore[list-item]
    lengths = np.array([len(row.ids) for row in rows])  # type: ignore[arg-type]
    (learned,) = np.nonzero(weights)
    where = Learned(np.cumsum(lengths) - lengths, learned, learned + 1, np.arange(len(learned)))
    paths = Paths(np.array(documents), np.array(starts), np.array(ends), len(rows))
    pieces = paths.cut(where, Rules(context, policy))  # type: ignore[arg-type]
    assert (side.used, side.samples) == (len(pieces.document),) * 2
    assert side.tokens == int((pieces.length + 1).sum())
    assert side.learned == int(pieces.learned.sum())


@pytest.fixture
def diagnosis() -> Diagnosis:
    rows = [pair("<b>hi</b>", "yes & no", "never", 1), judged("ho", "maybe", 2, desirable=False)]
    return diagnose(rows)


def test_samples_show_their_parts(diagnosis: Diagnosis) -> None:
    first, second = diagnosis.samples
    assert first.tokens == len("user\n<b>hi</b>") + len("assistant\n") + 3 + len("yes & no") + len("never") + 2
    shown = [(piece.part, piece.text, piece.learned) for piece in first.pieces]
    assert shown[:2] == [("prompt", SPECIAL[TURN], False), ("prompt", "user\n<b>hi</b>", False)]
    assert shown[-4:] == [
        ("chosen", "yes & no", True),
        ("chosen", "<|end|>", True),
        ("rejected", "never", True),
        ("rejected", "<|end|>", True),
    ]
    assert [piece.part for piece in second.pieces][-2:] == ["undesirable"] * 2


def test_the_terminal_and_the_page_colour_what_is_avoided(diagnosis: Diagnosis, tmp_path: Path) -> None:
    out = io.StringIO()
    show(diagnosis, Rich(file=out, force_terminal=True, width=100, color_system="256"))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    lines = [line.strip() for line in plain.splitlines()]
    for line in ("prompt: <|turn|>user", "chosen: yes & no<|end|>", "rejected: never<|end|>"):
        assert line in lines
    assert "undesirable: maybe<|end|>" in lines
    assert "48;5;22m" in out.getvalue()  # dark green
    assert "48;5;88m" in out.getvalue()  # dark red
    html = write_html(diagnosis, tmp_path / "check.html").read_text(encoding="utf-8")
    assert '<span class="part">chosen</span><span class="learned">yes &amp; no</span>' in html
    assert '<span class="part">rejected</span><span class="avoided">never</span>' in html
    assert "Red is learned to be avoided" in html
    plain_page = write_html(diagnose(pairs([])), tmp_path / "none.html").read_text(encoding="utf-8")
    assert "to be avoided</span>" not in plain_page
