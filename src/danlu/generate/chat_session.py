"""A conversation with a model: rendered by the checkpoint's own template as in training, streamed as it is written."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from danlu.data.chat_template import ChatTemplate, resolve_template
from danlu.data.tokenizer import Tokenizer
from danlu.errors import DataError, RecipeError, UnsupportedError
from danlu.generate.cache import Cache
from danlu.generate.generator import evaluating
from danlu.generate.language_model import LanguageModel
from danlu.generate.sampling import Sampling
from danlu.generate.text import pieces
from danlu.packed import Packed
from danlu.parts.readout import Logits

_REPLY = "reply"
"""Stands for what an assistant says where only what the template puts behind it is asked for."""


@dataclass
class _Memory:
    """What a model has seen, and the keys and values it keeps of that."""

    ids: list[int] = field(default_factory=list)
    cache: Cache = field(default_factory=Cache)

    def continued_by(self, ids: Sequence[int]) -> bool:
        """Whether `ids` begin with all that was seen and go on."""
        return len(self.ids) < len(ids) and ids[: len(self.ids)] == self.ids


class ChatSession:
    """A conversation, answered by a model.

    Each reply is drawn behind the whole conversation as the template renders it. Keys and values are kept from turn to
    turn as long as what was seen is how the new rendering begins; where it is not (a template that drops earlier
    reasoning, another system message, a reply whose text is tokenised differently when read), they are computed anew.
    So a reply is a function of the conversation, the sampling and its seed.

    Attributes:
        model: what answers.
        template: the checkpoint's own.
        sampling: how replies are drawn; `max_new_tokens` is the longest one.
        ending: the text that the template ends an assistant's turn with, white space left off; "" where it has none.
    """

    def __init__(
        self,
        model: LanguageModel,
        template: ChatTemplate,
        *,
        sampling: Sampling | None = None,
        system: str | None = None,
    ) -> None:
        """Make one in which nothing has been said, but for a system message."""
        self.model, self.template = model, template
        self.sampling = Sampling() if sampling is None else sampling
        self.ending = turn_ending(model.tokenizer, template)
        self._system = system
        self._turns: list[dict[str, Any]] = []
        self._memory = _Memory()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What was said so far, as OpenAI's messages, the system's first."""
        return [*_said("system", self._system), *self._turns]

    def say(self, text: str) -> Generator[str, None, None]:
        """Answer a message: the reply as it is written, in pieces of whole characters.

        Message and reply join the conversation when the reply ends, or when it is stopped, as far as it came; without
        a word of a reply neither does.

        Raises:
            DataError: when the template refuses the conversation.
            UnsupportedError: when the conversation leaves no position for a reply.
        """
        turns = [*self._turns, *_said("user", text)]
        rendered = self.template.render([*_said("system", self._system), *turns], add_generation_prompt=True)
        ids = chat_ids(self.model.tokenizer, rendered)
        return self._reply(turns, ids, self._room(ids))

    def reset(self) -> None:
        """Forget what was said; the system message stays."""
        self._turns = []

    def set_system(self, text: str | None) -> None:
        """Put another system message before the conversation, or none."""
        self._system = text or None

    def save(self, path: str | Path) -> None:
        """Write the conversation as one line, ``{"messages": [...]}``, which training reads.

        A file that ends in .jsonl gets one more line; any other must not exist yet.

        Raises:
            RecipeError: when nothing was said, or the file exists.
            DataError: when it cannot be written.
        """
        if not self._turns:
            raise RecipeError("nothing was said that could be saved", do="Say something first.")
        line = json.dumps({"messages": self.messages}, ensure_ascii=False).encode()
        try:
            path = Path(path).expanduser()
            if path.exists() and path.suffix != ".jsonl":
                do = "Choose another, or a .jsonl, which gets one more line."
                raise RecipeError("the file exists", where=path, do=do)
            with path.open("a+b") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    line = line if file.read(1) == b"\n" else b"\n" + line
                file.write(line + b"\n")
        except (OSError, RuntimeError) as fault:
            what = f"the file cannot be written ({getattr(fault, 'strerror', None) or fault})"
            raise DataError(what, where=path, do="Name another.") from None

    def _room(self, ids: Sequence[int]) -> int:
        """How many tokens a reply may have."""
        longest, most = self.model.model.longest, self.sampling.max_new_tokens
        if longest is None:
            return most
        if len(ids) >= longest:
            what = f"the conversation has {len(ids)} tokens, the model has positions for {longest}"
            raise UnsupportedError(what, do="Begin anew with /reset.")
        return min(most, longest - len(ids))

    def _reply(self, turns: list[dict[str, Any]], ids: list[int], most: int) -> Generator[str, None, None]:
        said = ""
        try:
            for piece in until(pieces(self.model.tokenizer, ids, self._tokens(ids, most)), self.ending):
                said += piece
                yield piece
        finally:
            if said:
                self._turns = [*turns, *_said("assistant", said)]

    def _tokens(self, ids: Sequence[int], most: int) -> Iterator[int]:
        ids = list(ids)
        for _ in range(most):
            token = self._next(ids)
            if token in self.model.stop:
                return
            yield token
            ids.append(token)

    def _next(self, ids: list[int]) -> int:
        """The token behind `ids`, of which the model is fed those that it has not seen."""
        memory, self._memory = self._memory, _Memory()  # a pass that is broken off leaves nothing half seen
        if not memory.continued_by(ids):
            memory = _Memory()
        network, start = self.model.model, len(memory.ids)
        device = next(network.parameters()).device
        packed = Packed.tree([ids[start:]], positions=torch.arange(start, len(ids))).to(device)
        last = torch.tensor([len(packed) - 1], device=device)
        with evaluating(network):
            (logits,) = network(packed, [Logits(last)], memory.cache)
            keys = self.sampling.keys(torch.tensor([0]), torch.tensor([len(ids)]))
            token = int(self.sampling.choose(logits, keys))
        self._memory = _Memory(list(ids), memory.cache)
        return token


def chat_template(tokenizer: Tokenizer, named: str | None = None) -> ChatTemplate | None:
    """The template of a name or a file, or by default the tokenizer's own, if it has one.

    Raises:
        DataError: when it is not sound, or there is no such file.
        UnsupportedError: when the tokenizer has several and none is the default.
    """
    return ChatTemplate.of(tokenizer.files, "tokenizer") if named is None else resolve_template(named, tokenizer)


def chat_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a rendered chat."""
    ((ids, _),) = tokenizer.encode_chat([text])
    return [int(i) for i in ids]


def turn_ending(tokenizer: Tokenizer, template: ChatTemplate) -> str:
    """What ends an assistant's turn: the first token of its own behind the words, as in training, else all text there.

    A model that was trained on it ends its turns so, whether or not the checkpoint counts it among the tokens that end
    a text.
    """
    exchange = [*_said("user", _REPLY), *_said("assistant", _REPLY)]
    behind = template.render(exchange).rpartition(_REPLY)[2].strip()
    inside = [token for token in tokenizer.added_tokens if token.strip() and token in behind]
    return min(inside, key=lambda token: (behind.index(token), -len(token)), default=behind)


def turn_opening(tokenizer: Tokenizer, template: ChatTemplate) -> str:
    """What stands last before an answer's words in what a model writes; "" where it writes nothing else.

    A template may put thoughts, or the name of a channel, between the prompt and the words.
    """
    asked = _said("user", _REPLY)
    prompt = template.render(asked, add_generation_prompt=True)
    text = template.render([*asked, *_said("assistant", _REPLY)])
    if not text.startswith(prompt):
        return ""
    opening = text[len(prompt) :].rpartition(_REPLY)[0]
    if "</think>" in opening:
        return "</think>"
    inside = [token for token in tokenizer.added_tokens if token.strip() and token in opening]
    return max(inside, key=opening.rindex, default="")


def until(texts: Iterable[str], ending: str) -> Iterator[str]:
    """A text in pieces, as far as an ending; nothing is given out that may be the beginning of the ending.

    Example:
        >>> list(until(["to b", "e <", "| or", " not <|e", "nd|> to"], "<|end|>"))
        ['to b', 'e ', '<| or', ' not ']
    """
    held = ""
    for text in texts:
        held += text
        if ending and ending in held:
            held = held.partition(ending)[0]
            break
        num_held = max((n for n in range(1, len(ending)) if held.endswith(ending[:n])), default=0)
        sure, held = held[: len(held) - num_held], held[len(held) - num_held :]
        if sure:
            yield sure
    if held:
        yield held


def _said(role: str, content: str | None) -> list[dict[str, Any]]:
    return [] if content is None else [{"role": role, "content": content}]
