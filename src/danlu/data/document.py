"""What a row of data is, whatever file and shape it came in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float32, Int64


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
    """

    ids: Int64[np.ndarray, " m"]
    weights: Float32[np.ndarray, " m"] | None = None


Document: TypeAlias = Text | Completion | Conversation | Tokens
