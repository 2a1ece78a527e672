"""Where the messages of a conversation lie in its text, for templates that have no generation blocks to tell it.

The conversation is rendered again with marks in its messages, and the marks are looked for in what comes out.
"""

from __future__ import annotations

import functools
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import Any, TypeAlias

from danlu.data.chat_template import ChatTemplate
from danlu.errors import DanluError, UnsupportedError

Place: TypeAlias = tuple[str, int]
"""Where a message is marked: a field, after so many of its characters; of tool_calls, after the last one's name."""

_SIGNS = range(0xE000, 0xF900)  # characters that no standard gives a meaning


@dataclass(frozen=True)
class Rendered:
    """A conversation with its text, rendered again as often as it takes to know where its messages lie in it.

    Attributes:
        template: what renders it.
        messages: as the template takes them.
        tools: as the template takes them.
        text: what it renders.
        where: its ``file:line``.
        ends: finds the tokens that may end a turn.
    """

    template: ChatTemplate
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    text: str
    where: str
    ends: re.Pattern[str]

    def find(self, learned: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Where the learned parts of some messages lie: of an assistant from its prompt on, else from its first word.

        Raises:
            UnsupportedError: when that cannot be told.
        """
        if not learned:
            return {}
        ends = self._marked({i: _end(self.messages[i]) for i in learned})
        if ends is None:
            raise self._refusal("the text around a message depends on what the message says")
        parts = {}
        for i in learned:
            if i not in ends:
                raise self._refusal(f"it leaves out the end of message {i + 1}, or repeats it")
            answers = self.messages[i]["role"] == "assistant" and i > 0
            start = self._prompted(i) if answers else None
            if answers and start is None and i == len(self.messages) - 1:
                raise self._refusal("it prompts an answer with what it does not render before one")
            start = self._begun(i) if start is None else start
            if start is None or start > ends[i]:
                raise self._refusal(f"it leaves out the beginning of message {i + 1}, or repeats it")
            parts[i] = start, self._closed(i, ends[i])
        return parts

    def _prompted(self, i: int) -> int | None:
        """Where the prompt for message i ends, if the text begins with that prompt."""
        try:
            prompt = self.template.render(self.messages[:i], self.tools, add_generation_prompt=True, where=self.where)
        except DanluError:
            return None
        return len(prompt) if self.text.startswith(prompt) else None

    def _begun(self, i: int) -> int | None:
        """Where the first of message i's words that come out begin; a template may cut some off, as old thoughts."""
        for key in ("reasoning_content", "content"):
            counts = range(_length(self.messages[i], key) + 1)
            if len(counts) == 1:
                continue
            first = 0
            if self._mark_at(i, key, 0) is None:
                first = bisect_left(counts, True, lo=1, key=lambda count: self._mark_at(i, key, count) is not None)
            if first < len(counts):
                return self._mark_at(i, key, first)
        return None

    def _mark_at(self, i: int, key: str, count: int) -> int | None:
        return (self._marked({i: (key, count)}) or {}).get(i)

    def _closed(self, i: int, said: int) -> int:
        """Where the token lies that ends message i: what is not an assistant's may have none."""
        assistant = self.messages[i]["role"] == "assistant"
        closing = self.text[said:]
        if i + 1 < len(self.messages):
            alone = self._closing(i, must=assistant)
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(closing, alone, strict=False)))
            first = self.ends.search(alone)  # another token may end the last turn than those before it
            here = self.ends.match(closing, first.start()) if first and first.start() <= same else None
            closing = closing[: max(same, here.end() if here else 0)]
        tokens = list(self.ends.finditer(closing))
        if not tokens:
            if assistant:
                raise self._refusal("no token of its own ends an assistant's turn")
            return said
        # calls and thoughts are followed by tokens that close them, before the one that ends the turn
        return said + tokens[0 if _end(self.messages[i])[0] == "content" else -1].end()

    def _closing(self, i: int, must: bool) -> str:
        """What comes after message i's words where there are no more messages."""
        try:
            pieces = self._pieces({i: _end(self.messages[i])}, i + 1)
        except DanluError:
            if must:
                raise
            return ""
        return pieces[-1] if len(pieces) == 3 else ""

    def _marked(self, marks: Mapping[int, Place]) -> dict[int, int] | None:
        """Where in the text the marks come out that are put into messages.

        A mark that is lost or doubled is not in the result, and None is the result where the marks change the text.
        """
        pieces = self._pieces(marks, len(self.messages))
        texts, names = pieces[::2], pieces[1::2]
        if "".join(texts) != self.text:
            return None
        counts, places = Counter(names), accumulate(map(len, texts))
        return {int(name): place for name, place in zip(names, places, strict=False) if counts[name] == 1}

    def _pieces(self, marks: Mapping[int, Place], count: int) -> list[str]:
        """The text of the first messages, cut at the marks: text, message, text, message, ... text."""
        sign = self._sign
        marked = [
            _with_mark(message, marks[i], f"{sign}{i}{sign}") if i in marks else message
            for i, message in enumerate(self.messages[:count])
        ]
        return re.split(f"{sign}([0-9]+){sign}", self.template.render(marked, self.tools, where=self.where))

    @functools.cached_property
    def _sign(self) -> str:
        return next((chr(code) for code in _SIGNS if chr(code) not in self.text), chr(_SIGNS[0]))

    def _refusal(self, why: str) -> UnsupportedError:
        do = "Set data.chat_template=chatml, or give a template with generation blocks."
        return UnsupportedError(f"the chat template cannot be masked: {why}", where=self.where, do=do)


def _length(message: Mapping[str, Any], key: str) -> int:
    """The characters of a field, without the spaces at its end, which a template may trim."""
    return len((message.get(key) or "").rstrip())


def says(message: Mapping[str, Any]) -> bool:
    """Whether a message has words or calls."""
    return bool(message.get("tool_calls") or _length(message, "content") or _length(message, "reasoning_content"))


def _end(message: Mapping[str, Any]) -> Place:
    """What a message ends with: its last call, its content, or where it has none its reasoning."""
    if message.get("tool_calls"):
        return "tool_calls", 0
    key = "content" if _length(message, "content") else "reasoning_content"
    return key, _length(message, key)


def _with_mark(message: Mapping[str, Any], place: Place, mark: str) -> dict[str, Any]:
    key, count = place
    if key == "tool_calls":
        *calls, call = message[key]
        function = {**call["function"], "name": f"{call['function']['name']}{mark}"}
        return {**message, key: [*calls, {**call, "function": function}]}
    return {**message, key: message[key][:count] + mark + message[key][count:]}
