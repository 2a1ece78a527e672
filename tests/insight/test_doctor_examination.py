from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from doctor_rows import END, SPECIAL, TURN, answered, decode, diagnose, found, row_of, spoilt, text
from hypothesis import given
from hypothesis import strategies as st

from danlu.data import pack
from danlu.data.document import Completion, Conversation, Document, Judged, Message, Preference, Text, Tokens
from danlu.insight.doctor import CHECKS, Piece, Row, Rule
from danlu.insight.doctor.lengths import Lengths, Packing

POLICIES = ["split", "refuse", "truncate_left", "truncate_right"]
FATES = {"unreadable", "empty", "unlearned", "refused"}

_texts = st.one_of(
    st.text(max_size=30), st.text(st.characters(), max_size=10), st.sampled_from(["", " ", "<|end|>", "a b c"])
)
_messages = st.builds(
    Message,
    st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
    st.one_of(_texts, st.builds(lambda content: ({"type": "text", "text": content},), _texts)),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.one_of(
        st.none(), st.dictionaries(st.sampled_from(["tool_calls", "name", "reasoning_content"]), _texts, max_size=2)
    ),
)
_ids = st.lists(st.integers(0, 500), max_size=20)


@st.composite
def _tokens(draw: st.DrawFn) -> Tokens:
    ids = draw(_ids)
    weights = draw(st.one_of(st.none(), st.lists(st.sampled_from([0.0, 1.0]), min_size=len(ids), max_size=len(ids))))
    return Tokens(np.array(ids, np.int64), None if weights is None else np.array(weights, np.float32))


_words = st.text(min_size=1, max_size=10).filter(str.strip)
_paths = st.tuples(_texts, _words, _words).map(lambda t: (Completion(t[0], t[1]), Completion(t[0], t[2])))
_documents: st.SearchStrategy[Document] = st.one_of(
    _paths.map(lambda paths: Preference(*paths)),
    st.builds(Judged, _paths.map(lambda paths: paths[0]), st.booleans()),
    st.builds(Text, _texts),
    st.builds(Completion, _texts, _texts),
    st.builds(Conversation, st.lists(_messages, min_size=1, max_size=4).map(tuple)),
    _tokens(),
)
_rows = st.one_of(
    st.builds(row_of, _documents, st.integers(1, 99), end=st.booleans()),
    st.builds(spoilt, st.just("the line is not JSON"), st.integers(1, 99), raw=st.binary(max_size=20)),
    st.just(Row("a.jsonl:1")),
)


@given(st.lists(_rows, max_size=12), st.lists(_rows, max_size=4), st.integers(1, 30), st.sampled_from(POLICIES))
def test_any_rows_have_one_fate_each(train: list[Row], held_out: list[Row], context: int, too_long: str) -> None:
    diagnosis = diagnose(train, held_out, context=context, too_long=too_long)
    for side, rows in ((diagnosis.train, train), (diagnosis.held_out, held_out)):
        assert side.rows == sum(side.fates.values()) == sum(side.shapes.values()) == len(rows)
        assert set(side.fates) == {"used", *FATES}
        assert 0 <= side.learned <= side.tokens
    errors = {finding.name: finding.count for finding in diagnosis.findings if finding.severity == "error"}
    sides = (diagnosis.train, diagnosis.held_out)
    assert errors == {fate: num for fate in FATES if (num := sum(side.fates[fate] for side in sides))}  # type: ignore[index]
    assert all(1 <= len(finding.examples) <= min(finding.count, 5) for finding in diagnosis.findings)
    assert sum(diagnosis.lengths.counts) == sum(row.ids is not None and len(row.ids) > 0 for row in train)
    assert (diagnosis.packing_efficiency is None) == (diagnosis.train.used == 0)
    json.dumps(diagnosis.as_dict(), allow_nan=False, ensure_ascii=False).encode()


@given(st.lists(_rows, max_size=8), st.sampled_from(POLICIES), st.integers(1, 30))
def test_samples_are_the_rows_decoded(rows: list[Row], too_long: str, context: int) -> None:
    diagnosis = diagnose(rows, too_long=too_long, context=context, num_samples=99)
    assert len(diagnosis.samples) == diagnosis.train.used
    assert sum(sample.learned for sample in diagnosis.samples) == diagnosis.train.learned
    assert sum(sample.tokens for sample in diagnosis.samples) == diagnosis.train.tokens


def test_the_numbers_of_a_small_set() -> None:
    rows = [
        answered("a", "bcd", 1),  # 6 + 1 + 1 + 11 + 3 + 1 tokens, of which 4 are learned
        text("hello world, hello world", 2),
        text("", 3),
        spoilt(line=4),
        answered("a", "b", 5, weight=0.0),
    ]
    train = diagnose(rows, context=1000).train
    assert (train.rows, train.used) == (5, 2)
    assert train.fates == {"used": 2, "unreadable": 1, "empty": 1, "unlearned": 1, "refused": 0}
    assert train.shapes == {"conversation": 2, "text": 2, "": 1}
    assert (train.samples, train.tokens, train.learned) == (2, 23 + 25, 4 + 24)
    assert train.left_out == "1 unreadable, 1 without text, 1 with nothing to learn"


@pytest.mark.parametrize(
    ("too_long", "samples", "tokens", "learned"),
    [("split", 3, 11, 10), ("truncate_left", 1, 5, 4), ("truncate_right", 1, 5, 4), ("refuse", 0, 0, 0)],
)
def test_what_the_policy_leaves(too_long: str, samples: int, tokens: int, learned: int) -> None:
    train = diagnose([text("0123456789")], context=4, too_long=too_long).train
    assert (train.samples, train.tokens, train.learned) == (samples, tokens, learned)


def test_the_verdict() -> None:
    rows = [text(f"a text of its own, number {line} of many", line) for line in range(1, 10)]
    clean = diagnose(rows, context=350)
    assert clean.verdict == (
        "You will learn from 9 of 9 rows: 324 tokens, of which 315 (97.2 %) are learned, in packs of 350 that are "
        "90 % full. Nothing speaks against it."
    )
    spotted = diagnose(
        [*rows, replace(rows[0], where="a.jsonl:10"), spoilt(line=11)], [text("held out")], rows_in_all=500
    )
    assert spotted.verdict.startswith("Looked at 12 of 500 rows. You will learn from 10 of 11 rows: ")
    assert "Left out: 1 unreadable." in spotted.verdict
    assert "1 of 1 held-out rows are measured on." in spotted.verdict
    assert "Look at: rows that repeat an earlier one (1)." in spotted.verdict
    assert diagnose([]).verdict == "Nothing can be learned from no rows."
    assert diagnose([spoilt()]).verdict == "Nothing can be learned from these rows. Left out: 1 unreadable."


def test_findings_come_worst_first() -> None:
    diagnosis = diagnose([text("a\x00 b c", 1), text("а б в г д е ж з и", 2), text("x\x00 y z" * 9, 3), spoilt(line=4)])
    severities = [finding.severity for finding in diagnosis.findings]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert diagnosis.worst == "error"


def test_checks_can_be_chosen() -> None:
    rules = [check for check in CHECKS if isinstance(check, Rule) and check.name == "empty"]
    diagnosis = diagnose([text("", 1), spoilt(line=2)], checks=rules)
    assert [finding.name for finding in diagnosis.findings] == ["empty"]
    assert diagnosis.train.fates["unreadable"] == 1


def test_rows_are_seen_once_and_one_at_a_time() -> None:
    alive = 0

    def rows() -> object:
        nonlocal alive
        for line in range(1, 60):
            alive += 1
            yield text(f"row {line}", line)

    assert diagnose(rows()).train.rows == alive == 59  # type: ignore[arg-type]


@given(st.lists(st.integers(1, 200), min_size=1, max_size=300))
def test_packing_is_what_the_packer_does(lengths: list[int]) -> None:
    packing = Packing(256)
    for length in lengths:
        packing.add([length])
    assert packing.efficiency() == pytest.approx(sum(lengths) / (256 * len(pack(lengths, 256))))


def test_packing_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("danlu.insight.doctor.lengths._WINDOW", 64)
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 200, size=1000).tolist()
    packing = Packing(512)
    for length in lengths:
        packing.add([length])
    whole = sum(lengths) / (512 * len(pack(lengths, 512)))
    assert packing.efficiency() == pytest.approx(whole, rel=0.05)


@given(st.lists(st.one_of(st.integers(1, 300), st.integers(1, 10**7)), min_size=1, max_size=200))
def test_histograms(values: list[int]) -> None:
    lengths = Lengths()
    for value in values:
        lengths.add(value)
    histogram = lengths.histogram()
    assert sum(histogram.counts) == len(values)
    assert len(histogram.edges) - len(histogram.counts) in {0, 1}
    assert histogram.longest == max(values)
    assert histogram.median <= histogram.most <= histogram.longest
    if max(values) < 1 << 16:
        assert histogram.median == sorted(values)[(len(values) - 1) // 2]
        edges = [*histogram.edges[: len(histogram.counts)], max(histogram.edges[-1], max(values) + 1)]
        assert np.histogram(values, edges)[0].tolist() == list(histogram.counts)


def test_a_sample_shows_what_is_learned() -> None:
    [sample] = diagnose([answered("hi", "ho\x1b[2J", 7)]).samples
    assert (sample.where, sample.tokens, sample.learned) == ("a.jsonl:7", 27, 7)
    assert sample.pieces == (
        Piece(SPECIAL[TURN], False, True),
        Piece("user\nhi", False),
        Piece(SPECIAL[END], False, True),
        Piece(SPECIAL[TURN], False, True),
        Piece("assistant\n", False),
        Piece("ho\\x1b[2J", True),
        Piece(SPECIAL[END], True, True),
    )


@pytest.mark.parametrize(("too_long", "shown"), [("truncate_left", "56789"), ("truncate_right", "01234")])
def test_a_sample_shows_what_is_kept(too_long: str, shown: str) -> None:
    [sample] = diagnose([text("0123456789", end=False)], context=4, too_long=too_long).samples
    assert "".join(piece.text for piece in sample.pieces) == shown
    assert [(piece.text, piece.learned) for piece in sample.pieces] == [(shown[0], False), (shown[1:], True)]


def test_a_long_sample_is_shortened() -> None:
    long = text("".join(map(str, range(4000))))
    many = row_of(Conversation((*(Message("user", str(n)) for n in range(200)), Message("assistant", "ok"))), 2)
    first, second = diagnose([long, many]).samples
    assert any("more tokens) … " in piece.text for piece in first.pieces)
    assert sum(len(piece.text) for piece in first.pieces) < 400
    assert len(second.pieces) == 61
    assert second.pieces[-2].text == "ok"


def test_the_same_samples_every_time() -> None:
    rows = [text(f"row number {line}", line) for line in range(1, 200)]
    chosen = [sample.where for sample in diagnose(rows).samples]
    assert chosen == [sample.where for sample in diagnose(iter(rows)).samples]
    assert len(set(chosen)) == 4
    assert chosen == sorted(chosen, key=lambda where: int(where.split(":")[1]))
    assert diagnose(rows, num_samples=0).samples == ()


def test_special_tokens_of_the_template_are_not_written_out() -> None:
    row = row_of(Tokens(np.array([TURN, 50, 51, END], np.int64)))
    assert found(diagnose([row]), "written_tokens") is None
    assert decode([TURN]) == SPECIAL[TURN]
