"""A row under examination: what of it is learned, what it says, and what the run would do with it."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Int64

from danlu.data.cutting import Rules, trimmed
from danlu.data.document import (
    Completion,
    Conversation,
    Document,
    Excerpt,
    Judged,
    Message,
    Path,
    Preference,
    Text,
    Tokens,
)
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
    def prompt(self) -> int:
        """The tokens before its answers; 0 where it is no prompt with answers."""
        return self.row.answers[0] if self.row.answers else 0

    @property
    def answers(self) -> list[slice]:
        """Where its answers lie."""
        return [slice(*bounds) for bounds in pairwise((*self.row.answers, self.num_tokens))]

    @property
    def path(self) -> int:
        """The tokens that are bounded by the context: all, or a prompt with its longest answer."""
        return self.prompt + max((own.stop - own.start for own in self.answers), default=self.num_tokens)

    @property
    def too_long(self) -> bool:
        """Whether it has more targets than the context."""
        return self.path - 1 > self.setting.context

    @property
    def policy(self) -> TooLong:
        """What becomes of it if it is too long; answers are never split."""
        return "refuse" if self.row.answers and self.setting.too_long == "split" else self.setting.too_long

    @functools.cached_property
    def targets(self) -> Int64[np.ndarray, " L"]:
        """Where the tokens are that count in the loss; the first one has nothing to be predicted from."""
        weights = self.row.weights
        return np.arange(1, self.num_tokens) if weights is None else np.flatnonzero(weights[1:] > 0) + 1

    @functools.cached_property
    def kept(self) -> Int64[np.ndarray, " K"]:
        """The tokens that are left where the run truncates."""
        everything = np.arange(self.num_tokens)
        if not self.too_long or not self.policy.startswith("truncate"):
            return everything
        if self.answers:
            longest, rules = self.path - self.prompt, Rules(self.setting.context, self.policy)
            dropped, most = trimmed(np.array([self.prompt]), np.array([longest]), rules)
            return np.concatenate(
                [
                    everything[int(dropped[0]) : self.prompt],
                    *(everything[a][: max(int(most[0]), 0)] for a in self.answers),
                ]
            )
        room = self.setting.context + 1
        return everything[-room:] if self.policy == "truncate_left" else everything[:room]

    @functools.cached_property
    def learned(self) -> Bool[np.ndarray, " K"]:
        """Which of the tokens that are kept are learned; what was cut off before the first cannot predict it."""
        learned = np.zeros(self.num_tokens, bool)
        learned[self.targets] = True
        learned = learned[self.kept]
        learned[:1] = False
        return learned

    @property
    def num_learned(self) -> int:
        """How many these are."""
        return int(self.learned.sum())

    @property
    def lengths(self) -> list[int]:
        """The rows that each of its samples takes in a pack."""
        if self.answers:  # nothing is predicted from the last token of an answer
            return [len(self.kept) - len(self.answers)]
        left, context = len(self.kept) - 1, self.setting.context
        return [min(context, left - start) for start in range(0, left, context)]

    @functools.cached_property
    def fate(self) -> Fate:
        """What becomes of it."""
        if self.row.fault is not None:
            return "unreadable"
        if not self.num_tokens:
            return "empty"
        if self.too_long and self.policy == "refuse":
            return "refused"
        return "used" if self._has_all_answers and self.num_learned else "unlearned"

    @property
    def _has_all_answers(self) -> bool:
        """Whether something is left of its prompt and to be learned of each answer, if it has answers."""
        learned = self.kept[self.learned]
        each = all(((learned >= own.start) & (learned < own.stop)).any() for own in self.answers)
        return each and (not self.answers or int(self.kept[0]) < self.prompt)

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
        case Completion() | Conversation():
            yield from _of_path(document)
        case Preference() | Judged():
            for number, (name, path) in enumerate(document.paths.items()):
                answer = f"the {name} answer"
                contents = _of_path(path, answer)
                yield from (said for said in contents if not number or said.place.startswith(answer))
        case Tokens():
            pass


def _of_path(path: Path, answer: str | None = None) -> Iterator[Content]:
    """A prompt and what answers it, by what that is called."""
    match path:
        case Completion(prompt, said) | Excerpt(prompt, said):
            yield Content("the prompt", "user", prompt)
            yield Content(answer or "the completion", "assistant", said, answer=True)
        case Conversation(messages, tools):
            if tools:
                yield Content("the tools", "system", _as_text(list(tools)))
            asked = True
            for number, message in enumerate(messages, start=1):
                asked &= message.weight == 0
                place = f"message {number} ({message.role})"
                yield from _of_message(message, place if asked or answer is None else f"{answer}, {place}")


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
