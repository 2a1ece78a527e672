from __future__ import annotations

import numpy as np
import pytest
from doctor_rows import (
    END,
    TURN,
    answered,
    diagnose,
    encode,
    found,
    judged,
    pair,
    places,
    row_of,
    spoilt,
    text,
)

from danlu.data.document import Completion, Conversation, Message, Preference, Tokens
from danlu.errors import DataError
from danlu.insight.doctor import CHECKS, Finding, Row, Rule, rule

SOUND = answered("What is 1 + 1?", "It is two, as everybody knows.", 2)
Case = tuple[dict[str, object], list[Row], str]

CASES: dict[str, list[Case]] = {
    "unreadable": [
        ({}, [spoilt()], "the line is not JSON: {oops"),
        ({}, [spoilt(raw=b"\xef\xbb\xbf{oops")], "the line is not JSON; it begins with a byte-order mark: {oops"),
        ({}, [spoilt(raw=b"\xff\x00 \x1b[31m")], "the line is not JSON: \\xff\\x00 \\x1b[31m"),
        ({}, [spoilt(raw=b"")], "the line is not JSON"),
        (
            {},
            [Row("a.txt:1", fault=DataError("byte 0xff is not UTF-8", where="a.txt:7"))],
            "byte 0xff is not UTF-8 (at a.txt:7)",
        ),
    ],
    "empty": [({}, [text("")], "there is nothing in it"), ({}, [Row("a.jsonl:1")], "there is nothing in it")],
    "unlearned": [
        ({}, [answered("hello", "you", weight=0.0)], "none of its 27 tokens is learned"),
        ({}, [row_of(Tokens(np.array([7])))], "it is one token, which has nothing to be predicted from"),
        (
            {"context": 4, "too_long": "truncate_right"},
            [answered("hello", "you")],
            "its 4 learned tokens all lie in what is cut off",
        ),
        (
            {"context": 18, "too_long": "truncate_right"},
            [pair("hello", "you", "me")],
            "of its 30 tokens the prompt or all that is learned of an answer is cut off",
        ),
        (
            {"context": 3, "too_long": "truncate_left"},
            [pair("hello", "you", "me")],
            "of its 30 tokens the prompt or all that is learned of an answer is cut off",
        ),
    ],
    "refused": [
        ({"context": 4, "too_long": "refuse"}, [text("hello")], "it has 6 tokens for a context of 4"),
        (
            {"context": 25},
            [pair("hello", "you", "me")],
            "it has 27 tokens with its longest answer for a context of 25",
        ),
    ],
    "cut": [
        (
            {"context": 4, "too_long": "truncate_right"},
            [text("hello")],
            "it has 6 tokens for a context of 4; its end is lost, with 1 learned tokens",
        ),
        (
            {"context": 4, "too_long": "truncate_left"},
            [text("hello")],
            "it has 6 tokens for a context of 4; its beginning is lost, with 1 learned tokens",
        ),
        (
            {"context": 25, "too_long": "truncate_right"},
            [pair("hello", "you", "me")],
            "it has 27 tokens with its longest answer for a context of 25; its end is lost, with 1 learned tokens",
        ),
    ],
    "split": [({"context": 4}, [text("hello")], "it has 6 tokens for a context of 4, and becomes 2 samples")],
    "white_space": [({}, [text(" \n\t ")], "its 5 tokens say nothing")],
    "byte_order_mark": [
        ({}, [text("one\ufefftwo")], "U+FEFF at character 4"),
        ({}, [answered("hi\ufeff", "ho")], "message 1 (user) has U+FEFF at character 3"),
    ],
    "control_characters": [
        ({}, [text("a\x00b\x00")], "U+0000 at character 2, 2 in all"),
        ({}, [text("C\x85")], "U+0085 at character 2"),
    ],
    "replacement_characters": [({}, [text("caf\ufffd")], "U+FFFD at character 4")],
    "private_characters": [
        ({}, [text("\uf0b7 item")], "U+F0B7 at character 1"),
        ({}, [text("\uffff")], "U+FFFF at character 1"),
    ],
    "half_characters": [({}, [text("a\ud83d")], "U+D83D at character 2")],
    "misread": [
        ({}, [text("cafÃ© noir")], '"Ã©" at character 4'),
        ({}, [text("donâ€™t")], '"â€™" at character 4'),
        ({}, [text("ÐŸÑ€Ð¸Ð²ÐµÑ‚")], '"ÐŸÑ€" at character 1, 3 in all'),
        ({}, [text("ä½\u00a0å¥½")], '"ä½\u00a0å¥½" at character 1'),
    ],
    "written_tokens": [
        (
            {},
            [answered("hi<|turn|>assistant", "hello")],
            'message 1 (user) has "<|turn|>" at character 3',
        ),
        ({}, [row_of(Completion("hi", "ho<|end|>"))], 'the completion has "<|end|>" at character 3'),
    ],
    "empty_answer": [
        ({}, [answered("hi", "  ")], "message 2 (assistant) is empty"),
        ({}, [row_of(Completion("hi", ""))], "the completion is empty"),
    ],
    "no_end": [
        ({}, [text("hello", end=False)], 'its last learned token is "o"'),
        ({}, [pair("hi", "yes", "no", end=False)], 'the chosen answer\'s last learned token is "s"'),
    ],
    "identical_pair": [({}, [pair("hi", "yes", "yes")], "both answers are the same 4 tokens")],
    "prompt_mismatch": [
        (
            {},
            [row_of(Preference(Completion("hi", "a"), Completion("hi", "b"), stray="What is 1 + 1?"))],
            'its prompt is "What is 1 + 1?", and both conversations begin otherwise',
        )
    ],
    "repeated_prompt": [
        (
            {},
            [pair("What is one and one, please?", *(f"What is one and one, please? {n}" for n in (2, 3)))],
            'both answers begin with "What is one and one, please?"',
        )
    ],
}

SOUND_ROWS: dict[str, list[Row]] = {
    "no_end": [pair("hi", "yes", "no"), judged("hi", "yes")],
    "identical_pair": [pair("hi", "yes", "no"), judged("hi", "yes")],
    "repeated_prompt": [pair("hi", "hi you", "hi there"), pair("What is one and one, please?", "2", "3")],
    "refused": [pair("hello", "you", "me")],
    "cut": [text("hello")],
    "split": [text("hello")],
    "control_characters": [text("a\tb\r\nc\x0c")],
    "byte_order_mark": [text("\u200dword")],
    "misread": [
        text("„groß“, «Ça va?» voilà…” NÃO SÃO É À Â Ü– ESPAÑA déjà vu, señor; naïve café"),
        text("привет, мир; 你好，世界；ＡＢＣ £5 · 20 °C"),
    ],
    "private_characters": [text("😀 你 é")],
    "half_characters": [text("😀")],
    "empty_answer": [
        row_of(
            Conversation((Message("user", "hi"), Message("assistant", "", fields={"tool_calls": [{"name": "look"}]})))
        ),
        answered("hi", "", weight=0.0),
    ],
    "written_tokens": [text("<end> <|else|>"), row_of(Tokens(np.array([TURN, 5, END])))],
    "white_space": [text("."), row_of(Tokens(np.array([TURN, *encode("a"), END])))],
}


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name, cases in CASES.items() for case in cases], ids=lambda x: str(x)[:30]
)
def test_a_rule_finds_its_row(name: str, case: Case) -> None:
    options, rows, what = case
    diagnosis = diagnose([*rows, SOUND] if "context" not in options else rows, **options)
    finding = found(diagnosis, name)
    assert isinstance(finding, Finding)
    assert finding.count == 1
    assert [(some.where, some.what) for some in finding.examples] == [(rows[0].where, what)]
    assert finding.title
    assert finding.do


@pytest.mark.parametrize("name", CASES)
def test_a_rule_leaves_sound_rows_alone(name: str) -> None:
    for row in [SOUND, *SOUND_ROWS.get(name, [])]:
        for policy in ("split", "refuse", "truncate_left", "truncate_right"):
            assert found(diagnose([row], too_long=policy), name) is None


def test_every_rule_is_tried() -> None:
    assert {check.name for check in CHECKS if isinstance(check, Rule)} == set(CASES)


def test_a_row_in_the_context_is_whole_and_one_beyond_is_not() -> None:
    assert found(diagnose([text("hello")], context=5), "split") is None
    assert places(diagnose([text("hello", 3)], context=4), "split") == ["a.jsonl:3"]


def test_rows_need_no_end_where_none_is_asked_for() -> None:
    assert found(diagnose([text("hello", end=False)], end_ids=()), "no_end") is None


def test_a_tokenizer_without_special_tokens_is_met() -> None:
    assert found(diagnose([text("<|end|>")], special_ids=()), "written_tokens") is None


def test_examples_are_capped_and_the_count_is_not() -> None:
    finding = found(diagnose([text("a\x00", line) for line in range(1, 9)], num_examples=3), "control_characters")
    assert finding is not None
    assert finding.count == 8
    assert [example.where for example in finding.examples] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"]


def test_everything_in_a_conversation_is_looked_at() -> None:
    fields = {"reasoning_content": "hm\x00", "tool_calls": [{"arguments": "\ufffd"}]}
    messages = (Message("user", ({"type": "text", "text": "a\ufeff"},)), Message("assistant", "ok", fields=fields))
    diagnosis = diagnose([row_of(Conversation(messages, tools=({"name": "\ue000"},)))])
    assert found(diagnosis, "control_characters").examples[0].what == (  # type: ignore[union-attr]
        "message 2 (assistant), reasoning_content has U+0000 at character 3"
    )
    for name in ("byte_order_mark", "replacement_characters", "private_characters"):
        assert places(diagnosis, name) == ["a.jsonl:1"]


def test_a_rule_of_ones_own() -> None:
    @rule("note", "rows that shout", "Whisper.")
    def shouting(case: object) -> str | None:
        return "it shouts" if case.row.document.text.isupper() else None  # type: ignore[attr-defined]

    [finding] = diagnose([text("HELLO", 1), text("hello", 2)], checks=[shouting]).findings
    assert (finding.name, finding.count, finding.examples[0].where) == ("shouting", 1, "a.jsonl:1")
