"""Rows for the doctor, by a tokenizer of one token a character."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from danlu.data.answering import encode_answers
from danlu.data.document import Completion, Conversation, Document, Judged, Message, Preference, Text, Tokens
from danlu.errors import DataError
from danlu.insight.doctor import Diagnosis, Finding, Row, examine

END, TURN = 0, 1
SPECIAL = {END: "<|end|>", TURN: "<|turn|>"}


def encode(text: str) -> list[int]:
    return [ord(c) + len(SPECIAL) for c in text]


def decode(ids: list[int]) -> str:
    return "".join(SPECIAL[i] if i in SPECIAL else chr(i - len(SPECIAL)) for i in ids)


def tokens_of(document: Document, *, end: bool = True) -> Tokens:
    """As a run would encode it: text is learned whole, of a conversation the assistant's words."""
    if isinstance(document, Tokens):
        return document
    if isinstance(document, Preference | Judged):
        return encode_answers(lambda path, _: tokens_of(path, end=end), document, "a.jsonl:1")  # type: ignore[arg-type]
    if isinstance(document, Text):
        ids = encode(document.text) + [END] * end if document.text else []
        return Tokens(np.array(ids, np.int64))
    if isinstance(document, Completion):
        messages: tuple[Message, ...] = (
            Message("user", document.prompt),
            Message("assistant", document.completion),
        )
    else:
        messages = document.messages
    ids, weights = [], []
    for message in messages:
        content = message.content if isinstance(message.content, str) else str(message.content[0]["text"])
        turn = [TURN, *encode(f"{message.role}\n")], [*encode(content), *[END] * end]
        learned = message.weight if message.role == "assistant" else 0.0
        ids += turn[0] + turn[1]
        weights += [0.0] * len(turn[0]) + [learned] * len(turn[1])
    return Tokens(np.array(ids, np.int64), np.array(weights, np.float32))


def row_of(document: Document, line: int = 1, *, file: str = "a.jsonl", end: bool = True) -> Row:
    tokens = tokens_of(document, end=end)
    return Row(
        f"{file}:{line}",
        type(document).__name__.lower(),
        document,
        tokens.ids,
        tokens.weights,
        raw=b"{}",
        answers=tokens.answers,
    )


def text(content: str, line: int = 1, *, file: str = "a.jsonl", end: bool = True) -> Row:
    return row_of(Text(content), line, file=file, end=end)


def answered(prompt: str, answer: str, line: int = 1, *, file: str = "a.jsonl", weight: float = 1.0) -> Row:
    messages = (Message("user", prompt), Message("assistant", answer, weight))
    return row_of(Conversation(messages), line, file=file)


def pair(prompt: str, chosen: str, rejected: str, line: int = 1, *, end: bool = True) -> Row:
    return row_of(Preference(Completion(prompt, chosen), Completion(prompt, rejected)), line, end=end)


def judged(prompt: str, answer: str, line: int = 1, *, desirable: bool = True) -> Row:
    return row_of(Judged(Completion(prompt, answer), desirable), line)


def spoilt(what: str = "the line is not JSON", line: int = 1, *, raw: bytes = b"{oops") -> Row:
    where = f"a.jsonl:{line}"
    return Row(where, fault=DataError(what, where=where), raw=raw)


def diagnose(
    train: Iterable[Row],
    held_out: Iterable[Row] = (),
    *,
    context: int = 10_000,
    too_long: str = "split",
    **more: object,
) -> Diagnosis:
    fixed = {"pack_tokens": context, "tokenizer_decode": decode, "special_ids": SPECIAL, "end_ids": {END}}
    return examine(train, held_out, context=context, too_long=too_long, **{**fixed, **more})  # type: ignore[arg-type]


def found(diagnosis: Diagnosis, name: str) -> Finding | None:
    return next((finding for finding in diagnosis.findings if finding.name == name), None)


def places(diagnosis: Diagnosis, name: str) -> list[str]:
    finding = found(diagnosis, name)
    return [example.where for example in finding.examples] if finding else []
