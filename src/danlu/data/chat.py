"""From a document to its tokens, and which of them are learned: the text that serving would render, told apart.

Where a template has generation blocks, these are what an assistant says. Where it has none, an assistant's part begins
where the prompt for it ends, and ends with the first special token after its own words. Where those words come out is
found by rendering the conversation again with marks in it; if that gives another text, the template is refused.

A prompt and what is learned after it are encoded apart, as serving does; between generation blocks the text is encoded
whole, as transformers does for its mask.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int64

from danlu.data.answering import encode_answers
from danlu.data.chat_template import ChatTemplate
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
from danlu.data.rendered import Place, Rendered, says
from danlu.data.tokenizer import Tokenizer
from danlu.errors import DataError, RecipeError, UnsupportedError, did_you_mean

__all__ = ["TRAIN_ON", "Chat", "Place", "Span"]

TRAIN_ON = ("assistant", "tool", "user", "system", "all", "last")
"""What may be learned: messages by their role, every token whatever a message's weight, an assistant's last message."""

Span: TypeAlias = tuple[int, int, float]
"""Characters of a text, from the first to one past the last, and how much their tokens count."""


@dataclass(frozen=True)
class Chat:
    """What makes tokens of documents, and says which of them are learned.

    Attributes:
        tokenizer: gives the ids.
        template: makes the text of a conversation; None where the tokenizer has none.
        train_on: of `TRAIN_ON`, what is learned of a conversation.
        add_bos: begin what no template renders with the tokenizer's first token, if it has one.
        add_eos: end that with the tokenizer's last token, if it has one.

    Raises:
        RecipeError: when `train_on` is none of `TRAIN_ON`.
    """

    tokenizer: Tokenizer
    template: ChatTemplate | None
    train_on: tuple[str, ...] = ("assistant",)
    add_bos: bool = True
    add_eos: bool = True

    def __post_init__(self) -> None:
        for name in self.train_on or ("",):
            if name not in TRAIN_ON:
                raise RecipeError(f"data.train_on has {name!r}", do=did_you_mean(name, TRAIN_ON))

    def encode(self, document: Document, where: str) -> Tokens:
        """The tokens of a document, and their weights: above 0 for just those that are learned.

        Args:
            document: of any kind; an empty text has no tokens, and an empty completion is not learned.
            where: its ``file:line``, for errors.

        Raises:
            DataError: when the template raises, or there is none, or ids are not of the tokenizer; when there is no
                prompt before answers, or nothing of one is learned.
            UnsupportedError: when the template cannot be masked.
        """
        if isinstance(document, Tokens):
            return self._checked(document, where)
        if isinstance(document, Text):
            return self._plain((document.text, 1.0))
        if isinstance(document, Preference | Judged):
            return self._answers(document, where)
        return self._path(document, where)

    def _path(self, path: Path, where: str) -> Tokens:
        if isinstance(path, Excerpt):
            return self._excerpt(path, where)
        if isinstance(path, Conversation):
            return self._conversation(path, where)
        if self.template is None:
            return self._excerpt(_joined(path), where)
        turns = Message("user", path.prompt), Message("assistant", path.completion)
        return self._conversation(Conversation(turns), where)

    def spans(self, conversation: Conversation, where: str) -> tuple[str, list[Span]]:
        """The text of a conversation, and which parts of it are learned, in order.

        Raises:
            DataError: when the template raises, or there is none.
            UnsupportedError: when the template cannot be masked.
        """
        text, spans, _ = self._spans(conversation, where)
        return text, spans

    def _conversation(self, conversation: Conversation, where: str) -> Tokens:
        text, spans, cuts = self._spans(conversation, where)
        ids, places = self._tokenize(text, cuts)
        weights = np.zeros(len(ids), np.float32)
        for start, end, weight in spans:
            weights[(places[:, 1] > start) & (places[:, 0] < end)] = weight
        return Tokens(ids, weights)

    def _tokenize(self, text: str, cuts: Sequence[int]) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, "m 2"]]:
        """Ids and their places in the text; what is learned is encoded apart from its prompt, as serving does."""
        bounds = [0, *(cuts if self._joins else ()), len(text)]
        parts = self.tokenizer.encode_chat([text[start:end] for start, end in pairwise(bounds)])
        places = [place + start for (_, place), start in zip(parts, bounds[:-1], strict=True)]
        return np.concatenate([ids for ids, _ in parts]), np.concatenate(places)

    @functools.cached_property
    def _joins(self) -> bool:
        """Whether the ids of two texts are those of a whole; some tokenizers begin every text with a space."""
        (first, _), (second, _), (both, _) = self.tokenizer.encode_chat(["a", "b", "ab"])
        return self.tokenizer.decode([*first, *second]) == self.tokenizer.decode(both)

    def _spans(self, conversation: Conversation, where: str) -> tuple[str, list[Span], list[int]]:
        """The text, what is learned of it, and where tokens must not lie across."""
        if self.template is None:
            do = "Set data.chat_template=chatml, or to the path of a .jinja file."
            raise DataError("the tokenizer has no chat template", where=where, do=do)
        messages = [_shown(message, where) for message in conversation.messages]
        tools = [dict(tool) for tool in conversation.tools] or None
        text, blocks = self.template.render_marked(messages, tools, where)
        if "all" in self.train_on:
            return text, [(0, len(text), 1.0)], []
        named = self._named(conversation.messages)
        learned = [i for i in named if conversation.messages[i].weight > 0 and says(messages[i])]
        spans: list[Span] = []
        if blocks is not None:
            spans = _of_blocks(blocks, conversation.messages, learned, where)
            learned = [i for i in learned if messages[i]["role"] != "assistant"]
        found = Rendered(self.template, messages, tools, text, where, self._ends).find(learned)
        parts = [(*found[i], conversation.messages[i].weight) for i in learned]
        return text, sorted(spans + parts), sorted(start for start, _, _ in parts)

    def _named(self, messages: Sequence[Message]) -> list[int]:
        """The messages that `train_on` names."""
        roles = ["system" if message.role == "developer" else message.role for message in messages]
        last = max((i for i, role in enumerate(roles) if role == "assistant"), default=None)
        return [i for i, role in enumerate(roles) if role in self.train_on or (i == last and "last" in self.train_on)]

    @functools.cached_property
    def _ends(self) -> re.Pattern[str]:
        """What may end a turn: a token of its own."""
        names = sorted((name for name in self.tokenizer.added_tokens if name.strip()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, names)) or "(?!)")

    def _excerpt(self, document: Excerpt, where: str) -> Tokens:
        if document.turns is not None and self.template is not None:
            return self._conversation(document.turns, where)
        before = 1.0 if "all" in self.train_on else 0.0
        return self._plain((document.before, before), (document.text, float(bool(document.text.strip()))))

    def _answers(self, document: Preference | Judged, where: str) -> Tokens:
        """A prompt and its answers; what comes before them is never learned."""
        everything = "all" in self.train_on
        chat = self._of_assistant if everything else self
        completions = [path for path in document.paths.values() if isinstance(path, Completion)]

        def encode(path: Path, where: str) -> Tokens:
            if not isinstance(path, Completion):
                return chat._path(path, where)
            if self.template is None:
                return chat._path(_joined(path, *completions), where)
            turns = Message("user", path.prompt, 0.0), Message("assistant", path.completion)
            return chat._path(Conversation(turns), where)

        return encode_answers(encode, document, where, everything=everything)

    @functools.cached_property
    def _of_assistant(self) -> Chat:
        """The same, learning what an assistant says."""
        return replace(self, train_on=("assistant",))

    def _plain(self, *parts: tuple[str, float]) -> Tokens:
        """Texts after one another with the tokenizer's first and last token around; what they say is only text."""
        if not any(text for text, _ in parts):
            return Tokens(np.zeros(0, np.int64), np.zeros(0, np.float32))
        first = [self.tokenizer.bos_id] if self.add_bos and self.tokenizer.bos_id is not None else []
        last = [self.tokenizer.eos_id] if self.add_eos and self.tokenizer.eos_id is not None else []
        encoded = [np.array(first, np.int64), *self.tokenizer.encode_batch([text for text, _ in parts])]
        encoded.append(np.array(last, np.int64))
        weights = np.array([parts[0][1], *(weight for _, weight in parts), parts[-1][1]], np.float32)
        return Tokens(np.concatenate(encoded), np.repeat(weights, [len(ids) for ids in encoded]))

    def _checked(self, document: Tokens, where: str) -> Tokens:
        strange = document.ids[(document.ids < 0) | (document.ids >= self.tokenizer.vocab_size)]
        if len(strange):
            what = f"token {strange[0]} is not of the tokenizer, which has {self.tokenizer.vocab_size}"
            raise DataError(what, where=where, do="Use the tokenizer that the ids were made with.")
        weights = np.ones(len(document.ids), np.float32) if document.weights is None else document.weights
        return Tokens(document.ids, weights)


def _joined(document: Completion, *others: Completion) -> Excerpt:
    """A prompt and its completion as one text; where no answer to the prompt brings a space, a newline parts them."""
    prompt, answers = document.prompt, (document, *others)
    spaced = not prompt or prompt[-1:].isspace() or any(answer.completion[:1].isspace() for answer in answers)
    return Excerpt(prompt if spaced else f"{prompt}\n", document.completion)


def _of_blocks(
    blocks: Sequence[tuple[int, int]], messages: Sequence[Message], learned: Sequence[int], where: str
) -> list[Span]:
    """The generation blocks of the messages that are learned."""
    spoken = [i for i, message in enumerate(messages) if message.role == "assistant"]
    chosen = [i for i in spoken if i in learned]
    if len(blocks) == len(spoken):
        paired = zip(blocks, spoken, strict=True)
        return [(start, end, messages[i].weight) for (start, end), i in paired if i in learned and end > start]
    if chosen and (chosen != spoken or len({messages[i].weight for i in spoken}) > 1):
        what = f"the chat template has {len(blocks)} generation blocks for {len(spoken)} messages of an assistant"
        do = "Learn all of these messages alike, or set data.chat_template=chatml."
        raise UnsupportedError(f"{what}, so it cannot be told which are learned", where=where, do=do)
    return [(start, end, messages[chosen[0]].weight) for start, end in blocks if chosen and end > start]


def _shown(message: Message, where: str) -> dict[str, Any]:
    """A message as a template is shown it: parts become the lines of one text, as servers do."""
    texts = [message.content] if isinstance(message.content, str) else [part.get("text") for part in message.content]
    if not all(isinstance(text, str) for text in texts):
        raise DataError("a part of a message is not text", where=where, do="Remove the part, or the row.")
    return {**message.as_dict(), "content": "\n".join(map(str, texts))}
