"""A row under examination: what of it is learned, what it says, and what the run would do with it."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Int64

from danlu.data.document import Completion, Conversation, Document, Message, Text, Tokens
from danlu.insight.doctor.row import Row

TooLong: TypeAlias = Literal["split", "refuse", "truncate_left", "truncate_right"]
Fate: TypeAlias = Literal["used", "unreadable", "empty", "unlearned", "refused"]


@dataclass(frozen=True)
class Setting:
    """What rows are examined for.

    Attributes:
        context: the most targets of a sample.
        too_long: what becomes of rows that have more.
        decode: the tokenizer's, with special tokens written out.
        special_ids: the tokenizer's special tokens.
        end_ids: the tokens that end a text or a turn, if every row is to end with one.
        num_examples: how many rows a finding names.
    """

    context: int
    too_long: TooLong
    decode: Callable[[list[int]], str]
    special_ids: frozenset[int]
    end_ids: frozenset[int]
    num_examples: int

    @functools.cached_property
    def special_text(self) -> re.Pattern[str] | None:
        """What finds a special token written out as text."""
        written = {self.decode([token]).strip() for token in self.special_ids} - {""}
        return re.compile("|".join(map(re.escape, sorted(written, key=len, reverse=True)))) if written else None


@dataclass(frozen=True)
class Content:
    """Some text of a document.

    Attributes:
        place: where in the document, as "message 2 (assistant)"; empty where it is all of it.
        role: whose it is.
        text: what it says.
        answer: whether it is an assistant's answer that is to be learned.
    """

    place: str
    role: str
    text: str
    answer: bool = False


@dataclass(frozen=True, eq=False)
class Case:
    """A row, with what its checks ask about it, worked out once.

    Attributes:
        row: as it was read.
        held_out: whether it is measured on rather than learned from.
        setting: what it is examined for.
    """

    row: Row
    held_out: bool
    setting: Setting

    @functools.cached_property
    def num_tokens(self) -> int:
        """Its tokens."""
        return 0 if self.row.ids is None else len(self.row.ids)

    @property
    def too_long(self) -> bool:
        """Whether it has more targets than the context."""
        return self.num_tokens - 1 > self.setting.context

    @functools.cached_property
    def targets(self) -> Int64[np.ndarray, " L"]:
        """Where the tokens are that count in the loss; the first one has nothing to be predicted from."""
        weights = self.row.weights
        return np.arange(1, self.num_tokens) if weights is None else np.flatnonzero(weights[1:] > 0) + 1

    @functools.cached_property
    def kept(self) -> slice:
        """The tokens that are left where the run truncates."""
        if not self.too_long or not self.setting.too_long.startswith("truncate"):
            return slice(0, self.num_tokens)
        room = self.setting.context + 1
        left = self.setting.too_long == "truncate_left"
        return slice(self.num_tokens - room, self.num_tokens) if left else slice(0, room)

    @functools.cached_property
    def num_learned(self) -> int:
        """The targets among the tokens that are kept, whose first one is none."""
        low, high = np.searchsorted(self.targets, (self.kept.start + 1, self.kept.stop))
        return int(high - low)

    @property
    def lengths(self) -> list[int]:
        """The rows that each of its samples takes in a pack."""
        left, context = self.kept.stop - self.kept.start - 1, self.setting.context
        return [min(context, left - start) for start in range(0, left, context)]

    @functools.cached_property
    def fate(self) -> Fate:
        """What becomes of it."""
        if self.row.fault is not None:
            return "unreadable"
        if not self.num_tokens:
            return "empty"
        if self.too_long and self.setting.too_long == "refuse":
            return "refused"
        return "used" if self.num_learned else "unlearned"

    @functools.cached_property
    def contents(self) -> tuple[Content, ...]:
        """All texts of its document."""
        return () if self.row.document is None else tuple(_contents(self.row.document))

    @functools.cached_property
    def said(self) -> str:
        """All it says in small letters and single spaces, without the system's words, which many rows share."""
        if isinstance(self.row.document, Tokens):
            return normal(self.setting.decode(self.row.document.ids.tolist()))
        return "\n".join(normal(content.text) for content in self.contents if content.role != "system")

    @functools.cached_property
    def digest(self) -> int:
        """A 64-bit hash of all it says and of who says it."""
        system = (normal(content.text) for content in self.contents if content.role == "system")
        roles = (content.role for content in self.contents)
        return digest_of("\x1e".join((*roles, "", *system, "", self.said)))


def normal(text: str) -> str:
    r"""Small letters, single spaces.

    Example:
        >>> normal(" To  BE\n")
        'to be'
    """
    return " ".join(text.casefold().split())


def digest_of(text: str) -> int:
    """A 64-bit hash of a text; among a million texts two have the same with chance 3e-8."""
    content = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _contents(document: Document) -> Iterator[Content]:
    match document:
        case Text(text):
            yield Content("", "", text)
        case Completion(prompt, completion):
            yield Content("the prompt", "user", prompt)
            yield Content("the completion", "assistant", completion, answer=True)
        case Conversation(messages, tools):
            if tools:
                yield Content("the tools", "system", _as_text(list(tools)))
            for number, message in enumerate(messages, start=1):
                yield from _of_message(message, f"message {number} ({message.role})")
        case Tokens():
            pass


def _of_message(message: Message, place: str) -> Iterator[Content]:
    role = "system" if message.role == "developer" else message.role
    fields = {name: value for name, value in (message.fields or {}).items() if value}
    answer = role == "assistant" and message.weight > 0 and "tool_calls" not in fields
    yield Content(place, role, _as_text(message.content), answer)
    for name, value in fields.items():
        yield Content(f"{place}, {name}", role, _as_text(value))


def _as_text(value: Any) -> str:
    """Text as it is, the texts of parts, anything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return "".join(str(part.get("text") or "") for part in value)
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
