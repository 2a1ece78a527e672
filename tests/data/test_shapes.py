from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.data.document import Completion, Conversation, Message, Text, Tokens
from danlu.data.shapes import check, recognise
from danlu.errors import DanluError, DataError, RecipeError

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def call(name: str = "weather", arguments: object = '{"city": "Xi\'an"}', ident: str | None = "c1") -> dict[str, Any]:
    own = {} if ident is None else {"id": ident}
    return {**own, "type": "function", "function": {"name": name, "arguments": arguments}}


def turns(*said: str) -> list[dict[str, Any]]:
    """Messages of a user and an assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


OPENAI = {
    "messages": [
        {"role": "system", "content": "You tend a furnace."},
        {"role": "user", "content": [{"type": "text", "text": "Is it hot?"}, {"type": "text", "text": "Really?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call()], "weight": 0},
        {"role": "tool", "tool_call_id": "c1", "content": "41 °C"},
        {"role": "assistant", "content": "Hot.", "weight": 1, "reasoning_content": "41 is much."},
    ],
    "tools": [WEATHER],
    "parallel_tool_calls": False,
}


def test_openai_messages() -> None:
    shape, document = recognise(OPENAI, "f:1")
    assert shape == "messages"
    arguments = {"city": "Xi'an"}
    called = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    assert document == Conversation(
        (
            Message("system", "You tend a furnace."),
            Message("user", "Is it hot?\nReally?"),
            Message("assistant", "", 0.0, {"tool_calls": [called]}),
            Message("tool", "41 °C", 1.0, {"tool_call_id": "c1"}),
            Message("assistant", "Hot.", 1.0, {"reasoning_content": "41 is much."}),
        ),
        (WEATHER,),
    )
    assert recognise({**OPENAI, "tools": json.dumps([WEATHER])}, "f:1")[1] == document
    assert recognise({"id": 7, "conversation": OPENAI["messages"], "tools": [WEATHER]}, "f:1")[1] == document


def test_columns_that_a_table_had_to_fill_with_nulls() -> None:
    filled = [{"name": None, "tool_calls": None, "tool_call_id": None, "weight": None, **m} for m in turns("1", "2")]
    row = {"messages": filled, "tools": None, "text": None, "prompt": None}
    assert recognise(row, "f:1") == ("messages", Conversation((Message("user", "1"), Message("assistant", "2"))))
    assert recognise({"messages": None, "text": "a"}, "f:1") == ("text", Text("a"))


def test_sharegpt() -> None:
    row = {
        "id": "x_0",
        "system": "Be brief.",
        "conversations": [
            {"from": "human", "value": "Weather?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Wien"}}'},
            {"from": "observation", "value": '{"t": 3}'},
            {"from": "gpt", "value": "Cold."},
        ],
        "tools": json.dumps([WEATHER]),
    }
    shape, document = recognise(row, "f:1")
    assert shape == "sharegpt"
    assert isinstance(document, Conversation)
    assert [message.role for message in document.messages] == ["system", "user", "assistant", "tool", "assistant"]
    made = document.messages[2].fields
    assert made is not None
    assert made["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Wien"}}
    ident = made["tool_calls"][0]["id"]
    assert len(ident) == 9
    assert ident.isalnum()
    assert document.messages[3].fields == {"tool_call_id": ident}


def test_the_older_spelling_of_a_call() -> None:
    messages = [
        *turns("Weather?"),
        {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": "{}"}},
        {"role": "function", "name": "weather", "content": "3"},
        {"role": "assistant", "content": "Cold."},
    ]
    _, document = recognise({"messages": messages}, "f:1")
    assert isinstance(document, Conversation)
    assert [message.role for message in document.messages] == ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize(
    ("row", "shape", "document"),
    [
        (
            {"instruction": "Add.", "input": "1, 2", "output": "3", "text": "all"},
            "alpaca",
            Completion("Add.\n1, 2", "3"),
        ),
        ({"instruction": "Add.", "input": "", "output": ""}, "alpaca", Completion("Add.", "")),
        (
            {"instruction": "And 3?", "output": "6", "history": [["1, 2", "3"]], "system": "Add."},
            "alpaca",
            Conversation(
                (
                    *(Message("system", "Add."), Message("user", "1, 2"), Message("assistant", "3")),
                    *(Message("user", "And 3?"), Message("assistant", "6")),
                )
            ),
        ),
        ({"question": "Q?", "answer": "A\n#### 72"}, "question/answer", Completion("Q?", "A\n#### 72")),
        ({"prompt": "P", "completion": " C"}, "prompt/completion", Completion("P", " C")),
        ({"prompt": "P", "response": "C"}, "prompt/completion", Completion("P", "C")),
        (
            {"prompt": turns("1", "2", "3"), "completion": [{"role": "assistant", "content": "4"}]},
            "prompt/completion",
            Conversation(
                (
                    *(Message("user", "1", 0.0), Message("assistant", "2", 0.0)),
                    *(Message("user", "3", 0.0), Message("assistant", "4")),
                )
            ),
        ),
        ({"text": ""}, "text", Text("")),
        ({"text": "火\x00", "meta": {"id": 1}}, "text", Text("火\x00")),
    ],
)
def test_other_shapes(row: dict[str, Any], shape: str, document: object) -> None:
    assert recognise(row, "f:1") == (shape, document)


@pytest.mark.parametrize(
    ("row", "ids", "weights"),
    [
        ({"input_ids": [3, 1, 2]}, [3, 1, 2], [1, 1, 1]),
        ({"input_ids": []}, [], []),
        ({"input_ids": [3, 1, 2], "labels": [-100, 1, 2]}, [3, 1, 2], [0, 1, 1]),
        ({"input_ids": [3, 1, 2], "loss_mask": [False, True, 0.5]}, [3, 1, 2], [0, 1, 0.5]),
        ({"input_ids": [3, 1, 2], "assistant_masks": [0, 0, 1], "labels": None}, [3, 1, 2], [0, 0, 1]),
        (
            {"input_ids": [3, 1, 2, 0], "labels": [-100, 1, 2, -100], "attention_mask": [1, 1, 1, 0]},
            [3, 1, 2],
            [0, 1, 1],
        ),
    ],
)
def test_tokens(row: dict[str, Any], ids: list[int], weights: list[float]) -> None:
    shape, document = recognise(row, "f:1")
    assert shape == "tokens"
    assert isinstance(document, Tokens)
    assert document.weights is not None
    assert (document.ids.dtype, document.weights.dtype) == (np.int64, np.float32)
    assert document.ids.tolist() == ids
    assert document.weights.tolist() == weights


@pytest.mark.parametrize(
    ("fields", "row", "shape", "document"),
    [
        (
            {"prompt": "{question}\n", "completion": "answer"},
            {"question": "Q", "answer": "A"},
            "prompt/completion",
            Completion("Q\n", "A"),
        ),
        (
            {"messages": "dialog", "role": "speaker", "content": "utterance"},
            {"dialog": [{"speaker": "user", "utterance": "1"}, {"speaker": "bot", "utterance": "2"}]},
            "messages",
            Conversation((Message("user", "1"), Message("assistant", "2"))),
        ),
        (
            {"role": "content", "content": "role"},
            {"messages": [{"content": "user", "role": "1"}, {"content": "assistant", "role": "2"}]},
            "messages",
            Conversation((Message("user", "1"), Message("assistant", "2"))),
        ),
        ({"text": "{title}: {body}"}, {"title": "T", "body": "B", "text": "X"}, "text", Text("T: B")),
    ],
)
def test_fields_say_what_is_what(fields: dict[str, str], row: dict[str, Any], shape: str, document: object) -> None:
    assert recognise(row, "f:1", fields) == (shape, document)


USER, SAID = {"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}
CALLING = {"role": "assistant", "content": None, "tool_calls": [call()]}


def messages(*items: object) -> dict[str, Any]:
    return {"messages": list(items)}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"a": 1, "b": 2},
            "the row's fields ('a', 'b') are of no shape that is known. Say what they are with data.fields",
        ),
        ({}, "the row's fields (none) are of no shape that is known"),
        (messages(), "the conversation has no messages"),
        (messages(USER, USER, SAID), "message 2 is of role 'user', as the one before it is"),
        (messages(USER, SAID, SAID), "message 3 is of role 'assistant', as the one before it is"),
        (
            messages(USER, {"role": "system", "content": "s"}, SAID),
            "message 2 is of role 'system', which only the first",
        ),
        (messages(SAID), "message 1 is of role 'assistant', and no user speaks"),
        (messages({"role": "system", "content": "s"}), "the conversation has no message of an assistant"),
        (messages(USER, SAID, USER), "the conversation ends with the user"),
        (messages(USER), "the conversation ends with the user"),
        (
            messages(USER, {"role": "asistant", "content": "2"}),
            "message 2 of 'messages' has the unknown role 'asistant'. Did you mean 'assistant'?",
        ),
        (messages(USER, {"content": "2"}), "the role of message 2 of 'messages' is null, not text"),
        (messages({"role": "user", "content": None}, SAID), "the content of message 1 of 'messages' is null, not text"),
        (messages({"role": "user"}, SAID), "the content of message 1 of 'messages' is null, not text"),
        (
            messages({"role": "user", "content": 3}, SAID),
            "the content of message 1 of 'messages' is a number, not text",
        ),
        (messages("hi", SAID), "item 1 of 'messages' is text, not an object"),
        (
            {"messages": json.dumps([USER, SAID])},
            "'messages' is text, not a list of objects. It looks like JSON inside",
        ),
        ({"messages": None}, "'messages' is null, not a list of objects"),
        (
            messages(USER, {"role": "tool", "content": "3"}, SAID),
            "message 2 is a tool's, and no tool was called before it",
        ),
        (
            messages(USER, {**CALLING, "tool_calls": [call(ident=None)]}, {"role": "tool", "content": "3"}, SAID),
            "message 3 is a tool's, and the call it answers has no id. Give each call an id",
        ),
        (
            messages(USER, CALLING, {"role": "tool", "content": "3", "tool_call_id": "c2"}, SAID),
            "message 3 is a tool's, and no call with id 'c2' waits for it",
        ),
        (
            messages(USER, {**CALLING, "tool_calls": [call(arguments="{city")]}),
            "the arguments of tool call 1 of message 2 of 'messages' is not JSON",
        ),
        (
            messages(USER, {**CALLING, "tool_calls": [call(arguments="[1]")]}),
            "the arguments of tool call 1 of message 2 of 'messages' is a list, not an object",
        ),
        (messages(USER, {**SAID, "weight": -1}), "the weight of message 2 of 'messages' is not a number >= 0"),
        (
            messages(USER, {**SAID, "weight": float("nan")}),
            "the weight of message 2 of 'messages' is not a number >= 0",
        ),
        (
            messages(USER, {**SAID, "weight": float("inf")}),
            "the weight of message 2 of 'messages' is not a number >= 0",
        ),
        (messages(USER, {**SAID, "weight": "1"}), "the weight of message 2 of 'messages' is text, not a number"),
        (
            messages({"role": "user", "content": "a\ud800"}, SAID),
            "the content of message 1 of 'messages' has half of a",
        ),
        (
            messages(USER, {**CALLING, "tool_calls": [call(arguments='{"a": "\\ud800"}')]}),
            "the arguments of tool call 1 of message 2 of 'messages' has half of a surrogate pair",
        ),
        (
            messages({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, SAID),
            "part 1 of the content of message 1 of 'messages' is of type 'image_url', and only text",
        ),
        ({**messages(USER, SAID), "tools": "[{"}, "'tools' is not JSON"),
        ({"text": 3.5}, "'text' is a number, not text"),
        ({"text": "\udfff"}, "'text' has half of a surrogate pair ('\\udfff'), which is no character"),
        ({"question": "Q", "answer": None}, "'answer' is null, not text"),
        ({"instruction": "I", "output": ["O"]}, "'output' is a list, not text"),
        ({"instruction": "I", "output": "O", "history": [["a"]]}, "item 1 of 'history' is not a pair of texts"),
        ({"prompt": "P", "completion": 1}, "'completion' is a number, not text"),
        ({"input_ids": "1 2"}, "'input_ids' is text, not a list of numbers"),
        ({"input_ids": [1, -2]}, "'input_ids' holds what is no token id"),
        ({"input_ids": [1, None]}, "item 2 of 'input_ids' is null, not a number"),
        ({"input_ids": [1, 2], "labels": [2, -100]}, "item 1 of 'labels' is neither the token there nor -100"),
        ({"input_ids": [1, 2], "labels": [1]}, "'labels' has 1 items for 2 of 'input_ids'"),
        ({"input_ids": [1], "loss_mask": [-1]}, "'loss_mask' holds a number below 0"),
        ({"input_ids": [1], "loss_mask": [float("nan")]}, "item 1 of 'loss_mask' is out of range"),
    ],
)
def test_a_fault_is_a_sentence_with_its_place(row: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError) as caught:
        recognise(row, "data.jsonl:7")
    assert str(caught.value).startswith(f"data.jsonl:7: {says}")


def test_fields_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(RecipeError, match="data.fields names 'promt'. Did you mean 'prompt'?"):
        recognise({"q": "1"}, "f:1", {"promt": "q"})
    with pytest.raises(DataError, match="f:1: the row has no field 'qestion'. Did you mean 'question'?"):
        recognise({"question": "1"}, "f:1", {"prompt": "qestion", "completion": "question"})


def test_ten_megabytes_in_one_message_are_only_a_long_message() -> None:
    long = "火" * (10 << 20)
    _, document = recognise({"messages": [USER, {"role": "assistant", "content": long}]}, "f:1")
    assert isinstance(document, Conversation)
    assert document.messages[1].content == long


def test_what_is_to_be_continued_may_end_with_the_user() -> None:
    _, document = recognise(messages(USER), "f:1", complete=False)
    assert document == Conversation((Message("user", "1"),))
    with pytest.raises(DataError, match="ends with the user"):
        check(document, "f:1")


def test_a_greeting_may_come_first_and_several_calls_are_answered_in_any_order() -> None:
    recognise(messages(SAID, USER, SAID), "f:1")
    recognise(messages({"role": "developer", "content": "s"}, SAID, USER, SAID), "f:1")
    both = {**CALLING, "tool_calls": [call(ident="a"), call(ident="b")]}
    answers = [{"role": "tool", "tool_call_id": ident, "content": "3"} for ident in ("b", "a")]
    recognise(messages(USER, both, *answers, SAID), "f:1")
    with pytest.raises(DataError, match="no call with id 'a' waits"):
        recognise(messages(USER, both, answers[1], answers[1], SAID), "f:1")


NAMES = ["messages", "conversations", "tools", "system", "instruction", "output", "history", "prompt", "completion"]
NAMES += [
    "question",
    "answer",
    "input_ids",
    "labels",
    "loss_mask",
    "text",
    "role",
    "content",
    "from",
    "value",
    "weight",
]
NAMES += ["tool_calls", "tool_call_id", "function", "function_call", "name", "arguments", "type", "id"]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
SCALARS |= st.sampled_from(["user", "assistant", "human", "gpt", "tool", "text", "\ud800", "[]", "{}", "[{}]"])
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=30,
)


@settings(max_examples=400)
@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), JSON, max_size=5), st.booleans())
def test_any_row_is_read_or_refused(row: dict[str, Any], complete: bool) -> None:
    said = "f:1: "
    try:
        _, document = recognise(row, "f:1", complete=complete)
    except DanluError as fault:
        said = str(fault)
    else:
        assert isinstance(document, Text | Completion | Conversation | Tokens)
    assert said.startswith("f:1: ")


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=100)
@given(st.lists(ANY_TEXT, min_size=2, max_size=8).map(lambda said: said[: len(said) // 2 * 2]), st.booleans())
def test_any_list_of_valid_messages_is_read_as_it_is(said: list[str], older: bool) -> None:
    row: dict[str, Any] = {"messages": turns(*said)}
    if older:
        row = {"conversations": [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(said)]}
    shape, document = recognise(json.loads(json.dumps(row)), "f:1")
    assert shape == ("sharegpt" if older else "messages")
    assert isinstance(document, Conversation)
    assert [message.as_dict() for message in document.messages] == turns(*said)
