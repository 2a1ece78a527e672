r"""The shapes of what people prefer: pairs of answers, and answers that were judged each.

| shape | fields |
|---|---|
| preference | prompt, chosen, rejected: texts or messages |
| preference | question, or instruction with input and history, in place of prompt |
| preference | conversations (or messages) in place of prompt; chosen and rejected a message each |
| preference/implicit | chosen, rejected: conversations that begin alike, up to an assistant's message |
| preference/transcript | the same as texts of turns, "\n\nHuman: ...\n\nAssistant: ..." |
| preference/text | the same as other texts |
| judged | a prompt with an answer in any shape; label, or kto_tag: whether it is desirable |

Beside a pair: system, tools; margin, or score_chosen and score_rejected, whose difference it is.

References:
    Hugging Face, "Dataset formats and types", https://huggingface.co/docs/trl/dataset_formats
    Ethayarajh et al., 2024, "KTO: model alignment as prospect theoretic optimization",
    https://arxiv.org/abs/2402.01306
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import takewhile
from typing import Any, TypeAlias

from danlu.data.document import Completion, Conversation, Excerpt, Judged, Message, Path, Preference
from danlu.data.fields import LARGEST, Row, as_text, text_field, wrong_kind
from danlu.data.messages import LISTS, alpaca_prompt, check, read_messages, with_tools
from danlu.data.transcripts import asks, common_prompt, turns
from danlu.errors import DataError

SIDES = ("chosen", "rejected")
"""The fields that a pair is told by."""
LABELS = ("label", "kto_tag")
"""The fields that say whether an answer is desirable."""
BESIDE = ("margin", "score_chosen", "score_rejected")
"""Numbers that may come with a pair."""

_TRUTHS = {"true": True, "false": False}
_BEFORE = ("system", "developer", "user")
"""Who speaks before an answer."""
_Side: TypeAlias = str | list[Message]
_Sides: TypeAlias = tuple[list[Message], list[Message]]


def is_pair(row: Row) -> bool:
    """Whether a row, its nulls left out, holds two answers."""
    return all(side in row for side in SIDES)


def is_judged(row: Row) -> bool:
    """Whether a row says of its answer that it is desirable or not; a number may be a label of another kind."""
    return isinstance(row.get("label"), bool) or "kto_tag" in row


def judged(document: Completion | Conversation, row: Row, where: str) -> Judged:
    """A document with what its row says of its answer: the completion, or the last message of the assistant.

    Raises:
        DataError: when the answer is empty, or the label is neither true nor false.
    """
    name = next(label for label in LABELS if label in row)
    desirable = _truth(row[name], f"'{name}'", where)
    if isinstance(document, Completion):
        _require_words(document.completion, "judged", where)
        return Judged(document, desirable)
    messages = document.messages
    answers = [i for i, message in enumerate(messages) if message.role == "assistant"]
    if "completion" in row or "response" in row:  # all of it is judged; the prompt's own messages weigh nothing
        answers = [i for i in answers if messages[i].weight > 0] or answers
        start = answers[0]
    else:
        start = answers[-1]
    return Judged(_path(document, start, "judged", where), desirable)


def read_pair(row: Row, where: str) -> tuple[str, Preference]:
    """The shape of a pair, and what it holds.

    Args:
        row: without nulls; it has a chosen or a rejected answer.
        where: its ``file:line``, for errors.

    Raises:
        DataError: when a side is missing or empty, the two do not begin alike, or a field is not what it should be.
    """
    for name in SIDES:
        if name not in row:
            raise DataError(f"the row has no {name} answer", where=where, do="Give the pair both, or remove it.")
    values = _values(row, where)
    chosen, rejected = (_side(row[name], name, where) for name in SIDES)
    asked = _asked(row, where)
    beside = row.get("system") or row.get("tools")
    if isinstance(chosen, str) and isinstance(rejected, str) and not isinstance(asked, list) and not (asked and beside):
        shape, paths = _of_texts(asked, chosen, rejected, where)
        return shape, Preference(*paths, values)
    shape, paths, stray = _of_messages(asked, (_as_answer(chosen), _as_answer(rejected)), row, where)
    return shape, Preference(*paths, values, stray)


def _as_answer(side: _Side) -> list[Message]:
    return [Message("assistant", side)] if isinstance(side, str) else side


def _side(value: object, name: str, where: str) -> _Side:
    """One answer: its text, or its messages."""
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        text = as_text(value, f"'{name}'", where)
        _require_words(text, name, where)
        return text
    messages = read_messages(value, name, where)
    if not messages:
        raise _empty(name, where)
    return messages


def _asked(row: Row, where: str) -> _Side | None:
    """The prompt that a row names, if it names one, without a system's message beside it."""
    key = next((key for key in ("prompt", "question", "instruction", *LISTS) if key in row), None)
    if key is None:
        return None
    if key == "instruction":
        asked = alpaca_prompt({**row, "system": None}, where)
        return str(asked[0].content) if len(asked) == 1 else asked
    if key in LISTS or isinstance(row[key], list):
        return read_messages(row[key], key, where)
    return text_field(row, key, where)


def _of_texts(asked: str | None, chosen: str, rejected: str, where: str) -> tuple[str, tuple[Path, Path]]:
    """Two texts behind a prompt, or two texts that begin alike."""
    if asked is not None and not asks(asked):
        return "preference", (Completion(asked, chosen), Completion(asked, rejected))
    whole = chosen, rejected
    if asked is not None and not all(text.startswith(asked) for text in whole):
        whole = asked + chosen, asked + rejected
    before = common_prompt(*whole) if asked is None else asked
    parts = [text[len(before) :] for text in whole]
    for name, part in zip(SIDES, parts, strict=True):
        _require_words(part, name, where)
    first, second = _transcripts(*whole) or (None, None)
    shape = "preference/text" if first is None else "preference/transcript"
    return shape, (Excerpt(before, parts[0], first), Excerpt(before, parts[1], second))


def _transcripts(chosen: str, rejected: str) -> tuple[Conversation, Conversation] | None:
    """Two transcripts as conversations with one prompt; None where they are none."""
    first, second = Conversation(tuple(turns(chosen))), Conversation(tuple(turns(rejected)))
    try:
        check(first, "")
        check(second, "")
        start = _common(first.messages, second.messages, "")
        return _path(first, start, "", ""), _path(second, start, "", "")
    except DataError:
        return None


def _of_messages(asked: _Side | None, sides: _Sides, row: Row, where: str) -> tuple[str, tuple[Path, Path], str | None]:
    """Conversations: each side is an answer behind the prompt that is named, or begins with a prompt itself."""
    given = [Message("user", asked)] if isinstance(asked, str) else asked
    whole = all(side[0].role in _BEFORE for side in sides)
    behind = None if given is None or (whole and isinstance(asked, str)) else _behind(given, sides)
    stray = None
    if behind is not None:
        sides = behind
    elif given is not None:
        if not whole:
            what = "one of 'chosen' and 'rejected' begins with a prompt, and the other does not"
            do = "Give both as answers behind a prompt, or both as whole conversations."
            raise DataError(what, where=where, do=do)
        stray = _stray(given, *sides)
    if row.get("system") and not any(side[0].role in ("system", "developer") for side in sides):
        system = Message("system", text_field(row, "system", where))
        sides, given = ([system, *sides[0]], [system, *sides[1]]), [system, *(given or [])]
    conversations = [with_tools(side, row, where) for side in sides]
    for name, conversation in zip(SIDES, conversations, strict=True):
        _check_side(conversation, name, where)
    start = 0 if behind is None else len(given or [])
    if not start or not _answers_at(start, sides):
        start = _common(*sides, where)
    chosen, rejected = (_path(c, start, name, where) for name, c in zip(SIDES, conversations, strict=True))
    return "preference" if asked is not None else "preference/implicit", (chosen, rejected), stray


def _behind(given: list[Message], sides: _Sides) -> _Sides | None:
    """Both sides behind the prompt that the row names; None where one begins with another prompt."""
    answers = []
    for side in sides:
        begins = given and len(side) > len(given) and all(map(_alike, side, given))
        goes_on = side[0].role not in _BEFORE or (given and given[-1].role != "user" and side[0].role == "user")
        if not begins and not goes_on:
            return None
        answers.append([*given, *(side[len(given) :] if begins else side)])
    return answers[0], answers[1]


def _stray(given: Sequence[Message], chosen: Sequence[Message], rejected: Sequence[Message]) -> str | None:
    """The prompt that a row names, if it is none of the messages that both sides begin with."""
    asked = str(given[-1].content) if given else ""
    shared = takewhile(lambda pair: _alike(*pair), zip(chosen, rejected, strict=False))
    said = {str(message.content).strip() for message, _ in shared}
    return asked if given and asked.strip() not in said else None


def _alike(one: Message, other: Message) -> bool:
    """Whether two messages say the same, but for white space at their ends."""
    said = str(one.content).strip() == str(other.content).strip()
    return said and (one.role, one.fields) == (other.role, other.fields)


def _same(one: Message, other: Message) -> bool:
    """Whether two messages are the same, whatever they weigh."""
    return (one.role, one.content, one.fields) == (other.role, other.content, other.fields)


def _answers_at(start: int, sides: Sequence[Sequence[Message]]) -> bool:
    return all(side[start].role == "assistant" for side in sides)


def _common(chosen: Sequence[Message], rejected: Sequence[Message], where: str) -> int:
    """How many messages are the prompt of both: those that are the same, up to one of the assistant in either."""
    last, sides = min(len(chosen), len(rejected)) - 1, (chosen, rejected)
    pairs = zip(chosen[:last], rejected[:last], strict=True)
    count = next((i for i, (one, other) in enumerate(pairs) if not _same(one, other)), last)
    while count == last > 0 and not _answers_at(count, sides):  # the shorter one has no more to compare
        last = count = count - 1
    if not _answers_at(count, sides):
        what = f"message {count + 1} of 'chosen' is not that of 'rejected', and no assistant's: they share no prompt"
        raise DataError(what, where=where, do="Give both answers behind the same prompt.")
    return count


def _path(conversation: Conversation, start: int, name: str, where: str) -> Conversation:
    """A conversation whose answer begins at a message; those before it weigh nothing."""
    messages = conversation.messages
    if not any(message.role == "assistant" and _speaks(message) for message in messages[start:]):
        raise _empty(name, where)
    prompt = (replace(message, weight=0.0) for message in messages[:start])
    return replace(conversation, messages=(*prompt, *messages[start:]))


def _speaks(message: Message) -> bool:
    fields: Mapping[str, Any] = message.fields or {}
    return bool(str(message.content).strip() or fields.get("tool_calls") or fields.get("reasoning_content"))


def _check_side(conversation: Conversation, name: str, where: str) -> None:
    try:
        check(conversation, where)
    except DataError as fault:
        raise DataError(f"'{name}' with its prompt: {fault.what}", where=where, do=fault.do) from None


def _values(row: Row, where: str) -> dict[str, tuple[float, ...]]:
    """The margin and the scores of a pair."""
    found = {name: _number(row[name], f"'{name}'", where) for name in BESIDE if row.get(name, "") != ""}
    values: dict[str, tuple[float, ...]] = {}
    if "score_chosen" in found and "score_rejected" in found:
        scores = found["score_chosen"], found["score_rejected"]
        values["score"] = scores
        found.setdefault("margin", scores[0] - scores[1])
    if "margin" in found:
        values["margin"] = (found["margin"],) * 2
    return values


def _number(value: object, name: str, where: str) -> float:
    if isinstance(value, str):  # of a table, whose cells are all text
        with suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_kind(name, value, "a number", where)
    if not -LARGEST < value < LARGEST:
        raise DataError(f"{name} is out of range", where=where, do="Make it a sound number.")
    return float(value)


def _truth(value: object, name: str, where: str) -> bool:
    """A truth value; of a table, 1 and 0 or their words."""
    if isinstance(value, str):
        value = _TRUTHS.get(value.strip().lower(), value)
    if isinstance(value, bool) or (isinstance(value, int | float) and value in (0, 1)):
        return bool(value)
    raise wrong_kind(name, value, "true or false", where)


def _require_words(text: str, name: str, where: str) -> None:
    if not text.strip():
        raise _empty(name, where)


def _empty(name: str, where: str) -> DataError:
    return DataError(f"the {name} answer is empty", where=where, do="Give the answer, or remove the row.")
