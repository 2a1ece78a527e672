"""What a row of data is, whatever file and shape it came in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float32, Int64

LearnsFrom: TypeAlias = Literal["sequence", "answers"]
"""What a method takes: sequences, or prompts with their answers."""


@dataclass(frozen=True)
class Text:
    """A text, all of which is learned."""

    text: str


@dataclass(frozen=True)
class Completion:
    """A prompt and what is to follow it; only that is learned.

    Where the tokenizer has a chat template it is an exchange of a user and an assistant; where it has none the two are
    joined as they stand, by a newline if neither brings a space.
    """

    prompt: str
    completion: str


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: "system", "developer", "user", "assistant" or "tool".
        content: text, or parts as ``{"type": "text", "text": ...}``, as a chat template takes them.
        weight: how much its tokens count where it is learned, ``>= 0``.
        fields: what else a template may look at: tool_calls, tool_call_id, name, reasoning_content.
    """

    role: str
    content: str | tuple[Mapping[str, Any], ...]
    weight: float = 1.0
    fields: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The message as a chat template takes it."""
        content = self.content if isinstance(self.content, str) else [dict(part) for part in self.content]
        return {"role": self.role, "content": content, **(self.fields or {})}


@dataclass(frozen=True)
class Conversation:
    """Messages in turn; which of them are learned is the recipe's choice.

    Attributes:
        messages: at least one.
        tools: descriptions of the tools that may be called, as JSON schemas.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Tokens:
    """Token ids as they are to be trained on.

    Attributes:
        ids: m of them.
        weights: how much each counts as a target, ``>= 0``; None is one for all.
        answers: where each answer begins, where they are a prompt and its answers, end to end.
    """

    ids: Int64[np.ndarray, " m"]
    weights: Float32[np.ndarray, " m"] | None = None
    answers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Excerpt:
    """A text cut in two, of which the second part is learned; they are joined as they stand.

    Attributes:
        before: what is not learned.
        text: what is.
        turns: of a transcript, its messages: where the tokenizer has a chat template, it renders these instead.
    """

    before: str
    text: str
    turns: Conversation | None = None


Path: TypeAlias = Completion | Excerpt | Conversation
"""A prompt with one answer; messages of the prompt weigh nothing, and the answer's first one weighs something."""


@dataclass(frozen=True)
class Preference:
    """A prompt and two answers, of which one is preferred.

    Attributes:
        chosen: the prompt with the answer that is preferred.
        rejected: the same prompt with the other one.
        values: numbers that came with the two, by name: "margin" (the pair's, for both), "score".
        stray: the prompt that the row names, where it is not the one that the answers follow.
    """

    chosen: Path
    rejected: Path
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    stray: str | None = None

    @property
    def paths(self) -> dict[str, Path]:
        """The prompt with each answer, by what is said of it."""
        return {"chosen": self.chosen, "rejected": self.rejected}


@dataclass(frozen=True)
class Judged:
    """A prompt and one answer, which is desirable or not.

    Attributes:
        answer: the prompt with the answer.
        desirable: whether it is.
    """

    answer: Path
    desirable: bool

    @property
    def values(self) -> dict[str, tuple[float, ...]]:
        """As those of a `Preference`: "desirable", 1 or 0."""
        return {"desirable": (float(self.desirable),)}

    @property
    def paths(self) -> dict[str, Path]:
        """The prompt with the answer, by what is said of it."""
        return {"desirable" if self.desirable else "undesirable": self.answer}


Document: TypeAlias = Text | Completion | Conversation | Tokens | Preference | Judged
