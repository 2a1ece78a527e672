from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.data.document import Completion, Conversation, Excerpt, Judged, Message, Preference
from danlu.data.shapes import recognise
from danlu.errors import DanluError, DataError

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
HUMAN = "\n\nHuman: Is it hot?\n\nAssistant: Very.\n\nHuman: Really?\n\nAssistant:"


def answers(row: dict[str, Any], fields: dict[str, str] | None = None) -> tuple[str, Any]:
    return recognise(row, "a.jsonl:1", fields, learns_from="answers")


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def said(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def path(*turns: str, asked: int, system: str | None = None, **more: Any) -> Conversation:
    """A conversation of a user and an assistant in turn, whose first messages are the prompt."""
    messages = [] if system is None else [Message("system", system, 0.0)]
    messages += [Message(("user", "assistant")[i % 2], text, float(i >= asked)) for i, text in enumerate(turns)]
    return Conversation(tuple(messages), **more)


PAIR = Preference(path("Q", "A", asked=1), path("Q", "B", asked=1))

CASES: dict[str, tuple[dict[str, Any], str, object]] = {
    "texts": (
        {"prompt": "Q", "chosen": "A", "rejected": "B", "id": 7},
        "preference",
        Preference(Completion("Q", "A"), Completion("Q", "B")),
    ),
    "texts of a question": (
        {"question": "Q", "chosen": "A", "rejected": "B", "system": ""},
        "preference",
        Preference(Completion("Q", "A"), Completion("Q", "B")),
    ),
    "a system beside texts": (
        {"system": "S", "question": "Q", "chosen": "A", "rejected": "B"},
        "preference",
        Preference(path("Q", "A", asked=1, system="S"), path("Q", "B", asked=1, system="S")),
    ),
    "tools beside texts": (
        {"prompt": "Q", "chosen": "A", "rejected": "B", "tools": json.dumps([WEATHER])},
        "preference",
        Preference(path("Q", "A", asked=1, tools=(WEATHER,)), path("Q", "B", asked=1, tools=(WEATHER,))),
    ),
    "alpaca": (
        {"instruction": "Add.", "input": "1, 2", "chosen": "3", "rejected": "4"},
        "preference",
        Preference(Completion("Add.\n1, 2", "3"), Completion("Add.\n1, 2", "4")),
    ),
    "alpaca with history": (
        {"instruction": "And 3?", "history": [["1, 2", "3"]], "system": "Add.", "chosen": "6", "rejected": "7"},
        "preference",
        Preference(
            path("1, 2", "3", "And 3?", "6", asked=3, system="Add."),
            path("1, 2", "3", "And 3?", "7", asked=3, system="Add."),
        ),
    ),
    "messages": ({"prompt": [user("Q")], "chosen": [said("A")], "rejected": [said("B")]}, "preference", PAIR),
    "messages with texts": ({"prompt": [user("Q")], "chosen": "A", "rejected": "B"}, "preference", PAIR),
    "one message": ({"prompt": [user("Q")], "chosen": said("A"), "rejected": "B"}, "preference", PAIR),
    "a text with messages": ({"prompt": "Q", "chosen": [said("A")], "rejected": [said("B")]}, "preference", PAIR),
    "the prompt in both": (
        {"prompt": [user("Q")], "chosen": [user("Q"), said("A")], "rejected": [user("Q"), said("B")]},
        "preference",
        PAIR,
    ),
    "the prompt in one": ({"prompt": "Q", "chosen": [user("Q "), said("A")], "rejected": "B"}, "preference", PAIR),
    "the system's part of a prompt": (
        {
            "prompt": [{"role": "system", "content": "S"}],
            "chosen": [user("Q"), said("A")],
            "rejected": [user("Q"), said("B")],
        },
        "preference",
        Preference(path("Q", "A", asked=1, system="S"), path("Q", "B", asked=1, system="S")),
    ),
    "ultrafeedback": (
        {
            "prompt": "Q",
            "prompt_id": "x",
            "messages": [user("Q"), said("A")],
            "chosen": [user("Q"), said("A")],
            "rejected": [user("Q"), said("B")],
            "score_chosen": 8.5,
            "score_rejected": 6,
        },
        "preference",
        Preference(PAIR.chosen, PAIR.rejected, {"score": (8.5, 6.0), "margin": (2.5, 2.5)}),
    ),
    "a margin is taken at its word": (
        {"prompt": "Q", "chosen": "A", "rejected": "B", "margin": 3, "score_chosen": 8.5, "score_rejected": 6},
        "preference",
        Preference(Completion("Q", "A"), Completion("Q", "B"), {"score": (8.5, 6.0), "margin": (3.0, 3.0)}),
    ),
    "a prompt in text is the last of a conversation's": (
        {
            "prompt": "Q2",
            "chosen": [user("Q"), said("A"), user("Q2"), said("B")],
            "rejected": [user("Q"), said("A"), user("Q2"), said("C")],
        },
        "preference",
        Preference(path("Q", "A", "Q2", "B", asked=3), path("Q", "A", "Q2", "C", asked=3)),
    ),
    "a stray prompt": (
        {"prompt": "R", "chosen": [user("Q"), said("A")], "rejected": [user("Q"), said("B")]},
        "preference",
        Preference(PAIR.chosen, PAIR.rejected, stray="R"),
    ),
    "answers of several turns": (
        {
            "prompt": [user("Q")],
            "chosen": [said("A"), user("Q2"), said("B")],
            "rejected": [said("A"), user("Q2"), said("C")],
        },
        "preference",
        Preference(path("Q", "A", "Q2", "B", asked=1), path("Q", "A", "Q2", "C", asked=1)),
    ),
    "sharegpt": (
        {
            "conversations": [
                {"from": "human", "value": "Q"},
                {"from": "gpt", "value": "A"},
                {"from": "human", "value": "Q2"},
            ],
            "chosen": {"from": "gpt", "value": "B"},
            "rejected": {"from": "gpt", "value": "C"},
            "system": "S",
        },
        "preference",
        Preference(path("Q", "A", "Q2", "B", asked=3, system="S"), path("Q", "A", "Q2", "C", asked=3, system="S")),
    ),
    "implicit": ({"chosen": [user("Q"), said("A")], "rejected": [user("Q"), said("B")]}, "preference/implicit", PAIR),
    "implicit up to the answer that differs": (
        {
            "chosen": [user("Q"), said("A"), user("Q2"), said("B")],
            "rejected": [user("Q"), said("A"), user("Q2"), said("C")],
        },
        "preference/implicit",
        Preference(path("Q", "A", "Q2", "B", asked=3), path("Q", "A", "Q2", "C", asked=3)),
    ),
    "implicit where one goes on": (
        {"chosen": [user("Q"), said("A"), user("Q2"), said("B")], "rejected": [user("Q"), said("A")]},
        "preference/implicit",
        Preference(path("Q", "A", "Q2", "B", asked=1), path("Q", "A", asked=1)),
    ),
    "implicit and the same": (
        {"chosen": [user("Q"), said("A")], "rejected": [user("Q"), said("A")]},
        "preference/implicit",
        Preference(PAIR.chosen, PAIR.chosen),
    ),
    "texts that begin alike": (
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        "preference/text",
        Preference(Excerpt("The sky is", " blue."), Excerpt("The sky is", " black.")),
    ),
    "texts of which one goes on": (
        {"chosen": "Q:\n\nyes", "rejected": "Q:\n\nyes no"},
        "preference/text",
        Preference(Excerpt("Q:\n\n", "yes"), Excerpt("Q:\n\n", "yes no")),
    ),
    "transcripts": (
        {"chosen": f"{HUMAN} Yes.", "rejected": f"{HUMAN} You bet."},
        "preference/transcript",
        Preference(
            Excerpt(HUMAN, " Yes.", path("Is it hot?", "Very.", "Really?", "Yes.", asked=3)),
            Excerpt(HUMAN, " You bet.", path("Is it hot?", "Very.", "Really?", "You bet.", asked=3)),
        ),
    ),
    "a transcript with its prompt": (
        {"prompt": HUMAN, "chosen": " Yes.", "rejected": " No."},
        "preference/transcript",
        Preference(
            Excerpt(HUMAN, " Yes.", path("Is it hot?", "Very.", "Really?", "Yes.", asked=3)),
            Excerpt(HUMAN, " No.", path("Is it hot?", "Very.", "Really?", "No.", asked=3)),
        ),
    ),
    "a transcript in which the human speaks twice": (
        {"chosen": "\n\nHuman: A\n\nHuman: B\n\nAssistant: C", "rejected": "\n\nHuman: A\n\nHuman: B\n\nAssistant: D"},
        "preference/transcript",
        Preference(
            Excerpt("\n\nHuman: A\n\nHuman: B\n\nAssistant:", " C", path("A\n\nB", "C", asked=1)),
            Excerpt("\n\nHuman: A\n\nHuman: B\n\nAssistant:", " D", path("A\n\nB", "D", asked=1)),
        ),
    ),
    "cells of a table": (
        {"prompt": "Q", "chosen": "A", "rejected": "B", "margin": "2.5", "score_chosen": ""},
        "preference",
        Preference(Completion("Q", "A"), Completion("Q", "B"), {"margin": (2.5, 2.5)}),
    ),
    "judged texts": (
        {"prompt": "Q", "completion": "A", "label": False},
        "judged",
        Judged(Completion("Q", "A"), desirable=False),
    ),
    "judged by a word of a table": (
        {"question": "Q", "answer": "A", "label": "True"},
        "judged",
        Judged(Completion("Q", "A"), desirable=True),
    ),
    "judged messages": (
        {"prompt": [user("Q")], "completion": [said("A")], "label": 1},
        "judged",
        Judged(path("Q", "A", asked=1), desirable=True),
    ),
    "judged messages behind a text": (
        {"prompt": "Q", "completion": [said("A"), user("Q2"), said("B")], "label": True},
        "judged",
        Judged(path("Q", "A", "Q2", "B", asked=1), desirable=True),
    ),
    "a judged conversation": (
        {"messages": [user("Q"), said("A"), user("Q2"), said("B")], "label": True},
        "judged",
        Judged(path("Q", "A", "Q2", "B", asked=3), desirable=True),
    ),
    "a tagged conversation": (
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "kto_tag": False},
        "judged",
        Judged(path("Q", "A", asked=1), desirable=False),
    ),
    "columns that a table had to fill": (
        {"prompt": "Q", "chosen": "A", "rejected": "B", "completion": None, "label": None, "margin": None},
        "preference",
        Preference(Completion("Q", "A"), Completion("Q", "B")),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_shapes(name: str) -> None:
    row, shape, document = CASES[name]
    assert answers(json.loads(json.dumps(row))) == (shape, document)


def test_fields_say_what_is_what() -> None:
    row = {"q": "Q", "good": [{"speaker": "bot", "text": "A"}], "bad": {"speaker": "bot", "text": "B"}, "by": 2}
    fields = {"prompt": "q", "chosen": "good", "rejected": "bad", "margin": "by", "role": "speaker", "content": "text"}
    assert answers(row, fields) == ("preference", Preference(PAIR.chosen, PAIR.rejected, {"margin": (2.0, 2.0)}))
    thumbs = {"q": "Q", "a": "A", "thumbs_up": True, "chosen": "x"}
    judged = answers(thumbs, {"question": "q", "answer": "a", "label": "thumbs_up"})
    assert judged == ("judged", Judged(Completion("Q", "A"), desirable=True))


def test_a_row_that_could_be_several_things_is_what_the_method_learns_from() -> None:
    row, _, document = CASES["ultrafeedback"]
    assert answers(row)[1] == document
    assert recognise(row, "f:1") == ("messages", Conversation((Message("user", "Q"), Message("assistant", "A"))))


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "Q", "chosen": "A"}, "the row has no rejected answer"),
    ({"prompt": "Q", "chosen": None, "rejected": "B"}, "the row has no chosen answer"),
    ({"prompt": "Q", "chosen": "A", "rejected": " \n"}, "the rejected answer is empty"),
    ({"prompt": "Q", "chosen": [], "rejected": "B"}, "the chosen answer is empty"),
    ({"prompt": [user("Q")], "chosen": [said(" ")], "rejected": "B"}, "the chosen answer is empty"),
    ({"chosen": f"{HUMAN} Yes.", "rejected": HUMAN}, "the rejected answer is empty"),
    ({"prompt": "Q", "chosen": 3, "rejected": "B"}, "'chosen' is a number, not text"),
    ({"prompt": 3, "chosen": "A", "rejected": "B"}, "'prompt' is a number, not text"),
    ({"prompt": "Q", "chosen": ["A"], "rejected": "B"}, "item 1 of 'chosen' is text, not an object"),
    ({"prompt": "Q", "chosen": json.dumps([said("A")]), "rejected": ["B"]}, "item 1 of 'rejected' is text"),
    (
        {"chosen": [user("Q"), said("A")], "rejected": [user("R"), said("B")]},
        "message 1 of 'chosen' is not that of 'rejected', and no assistant's: they share no prompt",
    ),
    (
        {"prompt": [user("R")], "chosen": [user("Q"), said("A")], "rejected": [said("B")]},
        "one of 'chosen' and 'rejected' begins with a prompt, and the other does not",
    ),
    ({"chosen": [said("A")], "rejected": [said("B")]}, "'chosen' with its prompt: message 1 is of role 'assistant'"),
    ({"chosen": [user("Q")], "rejected": [user("Q")]}, "'chosen' with its prompt: the conversation ends with the user"),
    (
        {"prompt": [user("Q"), said("X")], "chosen": [said("A")], "rejected": [said("B")]},
        "'chosen' with its prompt: message 3 is of role 'assistant', as the one before it is",
    ),
    (
        {"prompt": "Q", "chosen": [{"role": "asistant", "content": "A"}], "rejected": "B"},
        "message 1 of 'chosen' has the unknown role 'asistant'. Did you mean 'assistant'?",
    ),
    ({"prompt": "Q", "chosen": "A", "rejected": "B", "margin": "big"}, "'margin' is text, not a number"),
    ({"prompt": "Q", "chosen": "A", "rejected": "B", "score_chosen": True}, "'score_chosen' is a truth value, not a"),
    ({"prompt": "Q", "chosen": "A", "rejected": "B", "margin": float("nan")}, "'margin' is out of range"),
    ({"prompt": "Q", "chosen": "A", "rejected": "B", "margin": "nan"}, "'margin' is out of range"),
    ({"prompt": "Q", "chosen": "A", "rejected": "\ud800"}, "'rejected' has half of a surrogate pair"),
    ({"prompt": "Q", "completion": "A", "label": "good"}, "'label' is text, not true or false"),
    ({"prompt": "Q", "completion": "A", "label": 2}, "'label' is a number, not true or false"),
    ({"prompt": "Q", "completion": " ", "label": True}, "the judged answer is empty"),
    ({"prompt": "Q", "completion": "A"}, "the row is of shape 'prompt/completion', and the method learns from answers"),
    ({"text": "Q", "label": True}, "the row is of shape 'text', and the method learns from answers. Set method=sft"),
    ({"prompt": "Q"}, "the row's fields ('prompt') are of no shape that is known"),
    ({"prompt": "Q", "choosen": "A"}, "the row's fields ('prompt', 'choosen') are of no shape that is known. Did you"),
]


@pytest.mark.parametrize(("row", "says"), FAULTS)
def test_a_fault_is_a_sentence_with_its_place(row: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError) as caught:
        answers(row)
    assert str(caught.value).startswith(f"a.jsonl:1: {says}")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("texts", "the row is a pair of a chosen and a rejected answer, and the method learns from sequences"),
        ("implicit", "the row is a pair of a chosen and a rejected answer, and the method learns from sequences"),
        ("judged texts", "the row's answer is judged, and the method learns from sequences"),
        ("a tagged conversation", "the row's answer is judged, and the method learns from sequences"),
    ],
)
def test_answers_are_refused_where_sequences_are_learned(name: str, says: str) -> None:
    with pytest.raises(DataError) as caught:
        recognise(CASES[name][0], "a.jsonl:1")
    assert str(caught.value).startswith(f"a.jsonl:1: {says}. Set method=")


def test_the_refusals_say_how_to_go_on() -> None:
    chosen = {"prompt": "prompt", "completion": "chosen"}
    assert recognise(CASES["texts"][0], "f:1", chosen) == ("prompt/completion", Completion("Q", "A"))
    plain = {"prompt": "prompt", "completion": "completion"}
    assert recognise(CASES["judged texts"][0], "f:1", plain) == ("prompt/completion", Completion("Q", "A"))
    assert recognise({"text": "Q", "label": True}, "f:1")[0] == "text"
    assert recognise({"prompt": "Q", "completion": "A", "label": 1}, "f:1")[0] == "prompt/completion"


WORDS = st.text("ab \n", max_size=6)
ROLES = st.sampled_from(["user", "assistant", "system", "tool", "human", "gpt"])
MESSAGE = st.fixed_dictionaries(
    {},
    optional={"role": ROLES, "content": WORDS | st.none(), "from": ROLES, "value": WORDS, "weight": st.integers(-1, 1)},
)
VALUE = st.one_of(
    WORDS, st.none(), st.booleans(), st.integers(-1, 2), st.floats(), MESSAGE, st.lists(MESSAGE, max_size=3),
    st.builds("\n\nHuman: {}\n\nAssistant: {}".format, WORDS, WORDS), st.lists(WORDS, max_size=2),
)  # fmt: skip
NAMES = (
    *("prompt", "chosen", "rejected", "completion", "label", "kto_tag", "messages", "conversations", "question"),
    *("instruction", "system", "tools", "margin", "score_chosen", "score_rejected", "text", "history"),
)


@given(st.dictionaries(st.sampled_from(NAMES), VALUE, max_size=6), st.sampled_from(["answers", "sequence"]))
def test_any_row_is_a_document_or_a_sentence(row: dict[str, Any], learns_from: Any) -> None:
    document, told = None, ""
    try:
        _, document = recognise(row, "a.jsonl:1", learns_from=learns_from)
    except DanluError as fault:
        told = str(fault)
    assert told.startswith("a.jsonl:1: ") if document is None else not told
    if document is not None:
        assert isinstance(document, Preference | Judged) == (learns_from == "answers")


@st.composite
def whole(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Two conversations that begin alike and end with answers of their own."""
    shared = draw(st.lists(WORDS, min_size=1, max_size=4).filter(lambda texts: len(texts) % 2 == 1))
    prompt = [user(text) if i % 2 == 0 else said(text) for i, text in enumerate(shared)]
    chosen, rejected = draw(st.tuples(WORDS, WORDS).filter(lambda two: two[0] != two[1] and all(map(str.strip, two))))
    return [*prompt, said(chosen)], [*prompt, said(rejected)]


@given(whole())
def test_the_implicit_prompt_is_that_of_trl(sides: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> None:
    extract = pytest.importorskip("trl.data_utils").extract_prompt
    chosen, rejected = sides
    split = extract({"chosen": chosen, "rejected": rejected})
    _, document = answers({"chosen": chosen, "rejected": rejected})
    for ours, name in ((document.chosen, "chosen"), (document.rejected, "rejected")):
        asked = [message.as_dict() for message in ours.messages if message.weight == 0]
        assert asked == split["prompt"]
        assert [message.as_dict() for message in ours.messages[len(asked) :]] == split[name]


@given(st.lists(st.sampled_from(["the", "sky", "is", "blue"]), min_size=1, max_size=4), st.data())
def test_the_implicit_prompt_of_texts_is_that_of_trl(words: list[str], data: st.DataObject) -> None:
    """Where the answers begin with other letters; elsewhere theirs may end inside a word, and ours does not."""
    extract = pytest.importorskip("trl.data_utils").extract_prompt
    ends = data.draw(st.permutations(["amber", "now", "xenial", "quite so"]))[:2]
    row = {"chosen": f"{' '.join(words)} {ends[0]}", "rejected": f"{' '.join(words)} {ends[1]}"}
    _, document = answers(row)
    split = extract(row)
    assert document.chosen == Excerpt(split["prompt"], split["chosen"])
    assert document.rejected == Excerpt(split["prompt"], split["rejected"])
