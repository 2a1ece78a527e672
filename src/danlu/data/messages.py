"""The messages of a conversation: read in any spelling, and seen to follow one another as they can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from danlu.data.document import Conversation, Message
from danlu.data.fields import LARGEST, Row, as_json, as_objects, as_text, text_field, wrong_kind
from danlu.errors import DataError, did_you_mean

_ROLES = {
    **{name: name for name in ("system", "developer", "user", "assistant", "tool")},
    **dict.fromkeys(("gpt", "chatgpt", "bot", "function_call"), "assistant"),
    **dict.fromkeys(("function", "observation"), "tool"),
    "human": "user",
}
LISTS = ("messages", "conversation", "conversations")
"""The names that a list of messages goes by."""

REASONING = ("reasoning_content", "reasoning", "thinking")
"""The names that a message's reasoning goes by."""


def check(conversation: Conversation, where: str, *, complete: bool = True) -> None:
    """See that the messages of a conversation follow one another as they can.

    Args:
        conversation: with roles that are known.
        where: its ``file:line``, for errors.
        complete: whether it must have an assistant's message, and not end with the user's.

    Raises:
        DataError: when a role is out of order, or a tool's message answers no call.
    """
    messages = conversation.messages
    if not messages:
        raise DataError("the conversation has no messages", where=where, do="Remove it.")
    roles = ["system" if message.role == "developer" else message.role for message in messages]
    first = 1 if roles[0] == "system" else 0
    if roles[first:] and roles[first] == "assistant" and roles[first + 1 : first + 2] != ["user"]:
        raise _out_of_order(messages, first, "and no user speaks before or after it", where)
    for place, (before, role) in enumerate(pairwise(roles), 1):
        if role == "system":
            raise _out_of_order(messages, place, "which only the first can be", where)
        if role == before != "tool":
            raise _out_of_order(messages, place, "as the one before it is", where)
    _check_calls(messages, where)
    if complete and roles[-1] == "user":
        raise DataError("the conversation ends with the user", where=where, do="End it with what is to be learned.")
    if complete and "assistant" not in roles:
        raise DataError("the conversation has no message of an assistant", where=where, do="Remove it.")


def _out_of_order(messages: Sequence[Message], place: int, why: str, where: str) -> DataError:
    what = f"message {place + 1} is of role '{messages[place].role}', {why}"
    return DataError(what, where=where, do="Put the messages in order, or merge them.")


def _check_calls(messages: Sequence[Message], where: str) -> None:
    """Every message of a tool must answer a call that stands open, by its id."""
    waiting: list[str | None] | None = None
    for place, message in enumerate(messages, 1):
        fields = message.fields or {}
        if message.role != "tool":
            waiting = [call.get("id") for call in fields["tool_calls"]] if "tool_calls" in fields else None
            continue
        if waiting is None:
            what = f"message {place} is a tool's, and no tool was called before it"
            raise DataError(what, where=where, do="Put an assistant's message with the call before it.")
        answered = fields.get("tool_call_id")
        if answered is None or answered not in waiting:
            why = "the call it answers has no id" if None in waiting else f"no call with id {answered!r} waits for it"
            do = "Give each call an id, and its answer the same as tool_call_id."
            raise DataError(f"message {place} is a tool's, and {why}", where=where, do=do)
        waiting.remove(answered)


def read_messages(value: object, key: str, where: str, weight: float | None = None) -> list[Message]:
    """Messages in either spelling; calls are given ids where their spelling has no place for one.

    Args:
        value: the list of them.
        key: its field, for errors.
        where: its ``file:line``, for errors.
        weight: of them all, instead of their own.

    Raises:
        DataError: when one of them is no message, or has a fault.
    """
    messages: list[Message] = []
    waiting: list[str] = []
    for place, item in enumerate(as_objects(value, f"'{key}'", where), 1):
        name = f"message {place} of '{key}'"
        role = as_text(item.get("role") or item.get("from"), f"the role of {name}", where)
        if role not in _ROLES:
            raise DataError(f"{name} has the unknown role '{role}'", where=where, do=did_you_mean(role, _ROLES))
        content = item["content"] if item.get("content") is not None else item.get("value")
        fields, calls = _fields(item, name, where), item.get("tool_calls")
        bare = content if role == "function_call" else item.get("function_call")
        if bare is not None:
            content = None if role == "function_call" else content
            listed = as_json(bare, f"the call of {name}", where)
            listed = listed if isinstance(listed, list) else [listed]
            waiting = [f"call{place:03d}{n:02d}"[-9:] for n in range(len(listed))]  # nine, as some templates insist on
            calls = [{"function": call, "id": own} for call, own in zip(listed, waiting, strict=True)]
        if calls and _ROLES[role] == "assistant":
            fields["tool_calls"] = _calls(calls, name, where)
            content = "" if content is None else content
        if _ROLES[role] == "tool" and waiting:
            fields.setdefault("tool_call_id", waiting.pop(0))
        said = _content(content, f"the content of {name}", where)
        own = _weight(item.get("weight"), name, where) if weight is None else weight
        messages.append(Message(_ROLES[role], said, own, fields or None))
    return messages


def with_tools(messages: Sequence[Message], row: Row, where: str) -> Conversation:
    """A conversation of some messages, with the tools that stand beside it in a row.

    Raises:
        DataError: when `tools` is no list of objects.
    """
    tools = as_json(row.get("tools"), "'tools'", where) or []
    return Conversation(tuple(messages), tuple(as_objects(tools, "'tools'", where)))


def alpaca_prompt(row: Row, where: str) -> list[Message]:
    """The messages of an Alpaca row before its answer: the system's, those of its history, and the user's.

    Raises:
        DataError: when a field is not text, or the history holds no pairs.
    """
    prompt = text_field(row, "instruction", where)
    if row.get("input"):
        prompt = f"{prompt}\n{text_field(row, 'input', where)}"
    messages = [Message("system", text_field(row, "system", where))] if row.get("system") else []
    history = row.get("history") or []
    if not isinstance(history, list):
        raise wrong_kind("'history'", history, "a list of pairs", where)
    for place, pair in enumerate(history, 1):
        if not (isinstance(pair, list) and len(pair) == 2):
            raise DataError(f"item {place} of 'history' is not a pair of texts", where=where, do="Make it one.")
        for role, said in zip(("user", "assistant"), pair, strict=True):
            messages.append(Message(role, as_text(said, f"item {place} of 'history'", where)))
    return [*messages, Message("user", prompt)]


def _fields(item: Row, name: str, where: str) -> dict[str, Any]:
    """What else of a message a template may look at, but for its calls."""
    found = {key: item[key] for key in ("tool_call_id", "name") if item.get(key) is not None}
    reasoning = next((item[key] for key in REASONING if item.get(key) is not None), None)
    found |= {} if reasoning is None else {"reasoning_content": reasoning}
    return {key: as_text(value, f"'{key}' of {name}", where) for key, value in found.items()}


def _content(content: object, name: str, where: str) -> str:
    """Text, or parts that are all text: they become one, a line each, as servers have it."""
    if not isinstance(content, list):
        return as_text(content, name, where)
    texts = []
    for place, part in enumerate(as_objects(content, name, where), 1):
        if part.get("type", "text") != "text":
            what = f"part {place} of {name} is of type {part['type']!r}, and only text can be learned from"
            raise DataError(what, where=where, do="Remove the part, or the row.")
        texts.append(as_text(part.get("text"), f"part {place} of {name}", where))
    return "\n".join(texts)


def _calls(calls: object, name: str, where: str) -> list[dict[str, Any]]:
    """Tool calls, their arguments as the objects that templates want."""
    read = []
    for place, call in enumerate(as_objects(calls, f"the tool calls of {name}", where), 1):
        which = f"tool call {place} of {name}"
        function = call.get("function", call)
        if not isinstance(function, Mapping):
            raise wrong_kind(f"the function of {which}", function, "an object", where)
        arguments = as_json(function.get("arguments"), f"the arguments of {which}", where)
        if not isinstance(arguments, Mapping | None):
            raise wrong_kind(f"the arguments of {which}", arguments, "an object", where)
        called = as_text(function.get("name"), f"the function's name in {which}", where)
        own = {} if call.get("id") is None else {"id": as_text(call["id"], f"the id of {which}", where)}
        read.append({**own, "type": "function", "function": {"name": called, "arguments": dict(arguments or {})}})
    return read


def _weight(value: object, name: str, where: str) -> float:
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_kind(f"the weight of {name}", value, "a number", where)
    if not 0 <= value < LARGEST:
        raise DataError(f"the weight of {name} is not a number >= 0", where=where, do="Make it 0 or 1.")
    return float(value)
