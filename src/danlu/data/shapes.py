"""The shapes that rows of data come in, told by their fields, and what is wrong with a row that has none of them.

| shape | fields |
|---|---|
| messages | messages, conversation or conversations, of role and content; tools, system |
| sharegpt | the same, of from and value |
| alpaca | instruction, output; input, history, system |
| prompt/completion | prompt, completion or response: texts or messages |
| question/answer | question, answer |
| tokens | input_ids; labels, loss_mask, assistant_masks, attention_mask |
| text | text |
| judged | any of the above with a prompt and an answer, and label or kto_tag |
| preference | those of `danlu.data.shapes_of_pairs` |

A row that could be several things is what the method learns from: of a pair that also has messages, `sft` takes these.

References:
    OpenAI, "Chat completions", https://platform.openai.com/docs/api-reference/chat; ShareGPT's and Alpaca's fields are
    those of the first files of that name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from danlu.data.document import Completion, Conversation, Document, LearnsFrom, Message, Text, Tokens
from danlu.data.fields import LARGEST, Row, text_field, wrong_kind
from danlu.data.messages import LISTS, REASONING, alpaca_prompt, check, read_messages, with_tools
from danlu.data.shapes_of_pairs import BESIDE, LABELS, SIDES, is_judged, is_pair, judged, read_pair
from danlu.data.template import Template
from danlu.errors import DataError, RecipeError, did_you_mean

_INSIDE = ("role", "content", "from", "value", "weight", "name", "tool_calls", "tool_call_id", *REASONING)
_MASKS = ("labels", "loss_mask", "assistant_masks", "attention_mask")
_OUTSIDE = (
    *(*LISTS, "tools", "system", "instruction", "input", "output", "history", "prompt", "completion", "response"),
    *("question", "answer", "input_ids", *_MASKS, "text", *SIDES, *LABELS, *BESIDE),
)
_OF_MESSAGES = (*LISTS, "prompt", "completion", "response", *SIDES)
_NOT_LEARNED = -100


def recognise(
    row: Row,
    where: str,
    fields: Mapping[str, str] | None = None,
    *,
    complete: bool = True,
    learns_from: LearnsFrom = "sequence",
) -> tuple[str, Document]:
    r"""The shape of a row, and its document.

    Args:
        row: as it was read.
        where: its ``file:line``, for errors.
        fields: for rows of other names: a field of the table above -> the row's own, or a template of its own.
        complete: whether a conversation must have something to learn at its end; false for one to be continued.
        learns_from: what is looked for: sequences, or prompts with their answers.

    Raises:
        DataError: when the row has no shape that is known, or a fault, or is not what is looked for.
        RecipeError: when `fields` names what no shape has.

    Example:
        >>> recognise({"question": "1 + 1?", "answer": "2"}, "a.jsonl:1")
        ('question/answer', Completion(prompt='1 + 1?', completion='2'))
        >>> recognise({"q": "1 + 1?", "a": "2"}, "a.jsonl:1", {"prompt": "{q}\n", "completion": "a"})
        ('prompt/completion', Completion(prompt='1 + 1?\n', completion='2'))
    """
    mapped = _mapped(row, fields, where) if fields else row
    held = {key: value for key, value in mapped.items() if value is not None}
    if learns_from == "answers":
        return _answered(mapped, held, where)
    found = _sequence(mapped, held, where, complete)
    if found is None and is_pair(held):
        do = 'Set method=dpo or another for answers, or data.fields={"prompt": "prompt", "completion": "chosen"}.'
        what = "the row is a pair of a chosen and a rejected answer, and the method learns from sequences"
        raise DataError(what, where=where, do=do)
    if found is None:
        raise _unknown(mapped, where)
    if is_judged(held) and isinstance(found[1], Completion | Conversation):
        do = "Set method=kto or another for answers, or name in data.fields what is to be learned as it is."
        raise DataError("the row's answer is judged, and the method learns from sequences", where=where, do=do)
    return found


def _answered(mapped: Row, held: Row, where: str) -> tuple[str, Document]:
    """A pair, or an answer that is judged."""
    if any(side in mapped for side in SIDES):
        return read_pair(held, where)
    found = _sequence(mapped, held, where, complete=True)
    if found is None:
        raise _unknown(mapped, where)
    shape, document = found
    if isinstance(document, Completion | Conversation) and any(label in held for label in LABELS):
        return "judged", judged(document, held, where)
    raise not_answers(shape, where)


def not_answers(shape: str, where: str) -> DataError:
    """The fault of a row that is no prompt with answers, where these are learned from."""
    do = "Set method=sft, or give rows a chosen and a rejected answer each, or a label for their answer."
    return DataError(f"the row is of shape '{shape}', and the method learns from answers", where=where, do=do)


def _sequence(mapped: Row, held: Row, where: str, complete: bool) -> tuple[str, Document] | None:
    """What a row is by itself; None where its fields do not tell."""
    for seen in (held, mapped):  # a null field tells the shape only where nothing else does
        for shape, keys, read in _SHAPES:
            if all(key in seen for key in keys):
                document = read(seen, where)
                if isinstance(document, Conversation):
                    check(document, where, complete=complete)
                return _spelling(seen) if keys[0] in LISTS else shape, document
    return None


def _unknown(mapped: Row, where: str) -> DataError:
    named = ", ".join(f"'{key}'" for key in list(mapped)[:12]) or "none"
    known = {*SIDES, *(name for _, keys, _ in _SHAPES for name in keys)}
    near = next((hint for hint in (did_you_mean(name, known) for name in mapped) if hint.startswith("Did")), None)
    do = near or 'Say what they are with data.fields, as {"prompt": "its name", "completion": "its name"}.'
    return DataError(f"the row's fields ({named}) are of no shape that is known", where=where, do=do)


def _mapped(row: Row, fields: Mapping[str, str], where: str) -> Row:
    """The row under the names of a shape that is known."""
    for name in fields:
        if name not in (*_INSIDE, *_OUTSIDE):
            raise RecipeError(f"data.fields names '{name}'", do=did_you_mean(name, (*_INSIDE, *_OUTSIDE)))
    mapped = {name: _taken(row, own, where) for name, own in fields.items() if name in _OUTSIDE} or dict(row)
    inside = {name: own for name, own in fields.items() if name in _INSIDE}
    for key in _OF_MESSAGES if inside else ():
        items = mapped.get(key)
        if isinstance(items, list):
            mapped[key] = [_renamed(item, inside, where) if isinstance(item, Mapping) else item for item in items]
        elif isinstance(items, Mapping):
            mapped[key] = _renamed(items, inside, where)
    return mapped


def _renamed(message: Row, inside: Mapping[str, str], where: str) -> Row:
    named = {name: _taken(message, own, where) for name, own in inside.items() if own in message or "{" in own}
    return {key: value for key, value in message.items() if key not in inside.values()} | named


def _taken(row: Row, own: str, where: str) -> Any:
    """A field by its own name, whatever it holds, or the text of a template."""
    return row[own] if own in row else Template.parse(own).render(row, where)


def _spelling(row: Row) -> str:
    items = next(row[key] for key in LISTS if key in row)
    return "sharegpt" if any("from" in item for item in items[:1]) else "messages"


def _conversation(row: Row, where: str) -> Conversation:
    key = next(key for key in LISTS if key in row)
    messages = read_messages(row[key], key, where)
    if row.get("system") and not (messages and messages[0].role in ("system", "developer")):
        messages.insert(0, Message("system", text_field(row, "system", where)))
    return with_tools(messages, row, where)


def _alpaca(row: Row, where: str) -> Document:
    *before, asked = alpaca_prompt(row, where)
    output = text_field(row, "output", where)
    if not before:
        return Completion(str(asked.content), output)
    return Conversation((*before, asked, Message("assistant", output)))


def _exchange(row: Row, where: str) -> Document:
    """A prompt and its completion; of messages, those of the prompt are not learned."""
    answer = "completion" if "completion" in row else "response"
    if not isinstance(row["prompt"], list) and not isinstance(row[answer], list):
        return Completion(text_field(row, "prompt", where), text_field(row, answer, where))
    messages: list[Message] = []
    for key, role, weight in (("prompt", "user", 0.0), (answer, "assistant", None)):
        if isinstance(row[key], list):
            messages += read_messages(row[key], key, where, weight)
        else:
            messages.append(Message(role, text_field(row, key, where)))
    return with_tools(messages, row, where)


def _question(row: Row, where: str) -> Document:
    return Completion(text_field(row, "question", where), text_field(row, "answer", where))


def _plain(row: Row, where: str) -> Document:
    return Text(text_field(row, "text", where))


def _tokens(row: Row, where: str) -> Document:
    """Ids with what masks them; a token that is not attended to is padding, and left out."""
    ids = _numbers(row, "input_ids", where)
    if (ids < 0).any() or (ids % 1 != 0).any():
        raise DataError("'input_ids' holds what is no token id", where=where, do="Make them whole numbers >= 0.")
    weights, kept = np.ones(len(ids)), np.ones(len(ids), bool)
    for key in _MASKS:
        if row.get(key) is None:
            continue
        values = _numbers(row, key, where)
        if len(values) != len(ids):
            what = f"'{key}' has {len(values)} items for {len(ids)} of 'input_ids'"
            raise DataError(what, where=where, do="Make them as many.")
        if key == "labels":
            wrong = np.flatnonzero((values != ids) & (values != _NOT_LEARNED))
            if len(wrong):
                what = f"item {wrong[0] + 1} of 'labels' is neither the token there nor {_NOT_LEARNED}"
                raise DataError(what, where=where, do="Give the tokens themselves as labels, not shifted.")
            values = values != _NOT_LEARNED
        elif (values < 0).any():
            raise DataError(f"'{key}' holds a number below 0", where=where, do="Make it 0 or more.")
        if key == "attention_mask":
            kept = values > 0
        else:
            weights = weights * values
    return Tokens(ids[kept].astype(np.int64), weights[kept].astype(np.float32))


def _numbers(row: Row, key: str, where: str) -> np.ndarray:
    value = row[key]
    if not isinstance(value, list):
        raise wrong_kind(f"'{key}'", value, "a list of numbers", where)
    for place, item in enumerate(value, 1):
        if not isinstance(item, int | float):
            raise wrong_kind(f"item {place} of '{key}'", item, "a number", where)
        if not -LARGEST <= item < LARGEST:
            raise DataError(f"item {place} of '{key}' is out of range", where=where, do="Make it a sound number.")
    return np.array(value, np.float64)


_SHAPES = (
    *(("messages", (key,), _conversation) for key in LISTS),
    ("alpaca", ("instruction", "output"), _alpaca),
    ("prompt/completion", ("prompt", "completion"), _exchange),
    ("prompt/completion", ("prompt", "response"), _exchange),
    ("question/answer", ("question", "answer"), _question),
    ("tokens", ("input_ids",), _tokens),
    ("text", ("text",), _plain),
)
"""Shapes, the fields they are told by, and what reads them; the first that fits is it."""
