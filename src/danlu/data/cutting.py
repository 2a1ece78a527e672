"""How documents become samples: which are meant, where they are cut, and what is learned of each piece."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int64

from danlu.data.order import chosen

TooLong = Literal["split", "refuse", "truncate_left", "truncate_right"]
Side = Literal["train", "held_out"]


@dataclass(frozen=True)
class Rules:
    """What decides the samples of some documents.

    Attributes:
        context: the most targets of a sample.
        too_long: what becomes of a document that has more; one of a prompt and answers is refused rather than split.
        fraction: the share of documents that is held out, each by its own content; 0 is none.
        seed: another seed holds out others.
        side: which of the two is meant.
    """

    context: int
    too_long: TooLong = "split"
    fraction: float = 0.0
    seed: int = 0
    side: Side = "train"

    def holds_out(self, digest: int) -> bool:
        """Whether the document with this hash is on the other side."""
        found = chosen(np.array([digest], np.uint64), self.fraction, self.seed)
        return bool(self.fraction) and bool(found[0])

    def meant(self, documents: np.ndarray) -> Bool[np.ndarray, " D"]:
        """Which documents are on this side."""
        if not self.fraction:
            return np.full(len(documents), self.side == "train")
        return chosen(documents["digest"], self.fraction, self.seed) == (self.side == "held_out")


@dataclass(frozen=True)
class Pieces:
    """Documents, cut.

    Attributes:
        document: the number of each piece's document.
        offset: the document's targets before the piece.
        length: its targets.
        learned: those that have a weight.
    """

    document: Int64[np.ndarray, " S"]
    offset: Int64[np.ndarray, " S"]
    length: Int64[np.ndarray, " S"]
    learned: Int64[np.ndarray, " S"]

    def only(self, keep: Bool[np.ndarray, " S"] | slice) -> Pieces:
        """Some of them."""
        return Pieces(self.document[keep], self.offset[keep], self.length[keep], self.learned[keep])


def cut(targets: Int64[np.ndarray, " D"], learned: Learned, rules: Rules) -> Pieces:
    """The pieces of documents, of which something is learned.

    Cut at the context, a document's pieces overlap by one token, so that every token after its first is a target once.
    Truncated, it is one piece: its beginning (`truncate_right`) or its end (`truncate_left`).

    Args:
        targets: how many each document has.
        learned: which of them have a weight.
        rules: how to cut.
    """
    context = rules.context
    if rules.too_long == "split":
        count = -(-targets // context)
        document = np.repeat(np.arange(len(targets)), count)
        before = np.repeat(np.cumsum(count) - count, count)
        offset = (np.arange(len(before)) - before) * context
    else:
        held = targets > 0 if rules.too_long != "refuse" else (targets > 0) & (targets <= context)
        document = np.flatnonzero(held)
        left = np.maximum(targets[document] - context, 0)
        offset = left if rules.too_long == "truncate_left" else np.zeros_like(left)
    length = np.minimum(targets[document] - offset, context)
    pieces = Pieces(document, offset, length, learned.count(document, offset, length))
    return pieces.only(pieces.learned > 0)


def trimmed(
    prompt: Int64[np.ndarray, " D"], longest: Int64[np.ndarray, " D"], rules: Rules
) -> tuple[Int64[np.ndarray, " D"], Int64[np.ndarray, " D"]]:
    """How many tokens prompts lose at their beginning, and how many their answers may have, as the rules truncate.

    A prompt with its longest answer then has no more targets than the context, where that can be: a prompt is left
    none where too much is cut, or an answer none.

    Args:
        prompt: tokens of each prompt.
        longest: tokens of its longest answer.
        rules: what bounds them.
    """
    beyond = np.maximum(prompt + longest - 1 - rules.context, 0)
    nothing = np.zeros_like(beyond)
    if rules.too_long == "truncate_left":
        return beyond, longest
    return nothing, longest - (beyond if rules.too_long == "truncate_right" else nothing)


@dataclass(frozen=True)
class Paths:
    """Prompts and their answers, all answers of all documents one after another.

    Attributes:
        document: the number of each answer's document.
        start: its first token, counted from the document's; what lies before the first answer's is the prompt.
        end: one past its last.
        num_documents: how many documents there are, with answers or without.
    """

    document: Int64[np.ndarray, " A"]
    start: Int64[np.ndarray, " A"]
    end: Int64[np.ndarray, " A"]
    num_documents: int

    def __len__(self) -> int:
        return len(self.document)

    @functools.cached_property
    def prompt(self) -> Int64[np.ndarray, " D"]:
        """The tokens of each document's prompt."""
        prompt = np.zeros(self.num_documents, np.int64)
        prompt[self.document[::-1]] = self.start[::-1]  # the first of a document is written last
        return prompt

    @functools.cached_property
    def longest(self) -> Int64[np.ndarray, " D"]:
        """The tokens of each document's longest answer."""
        longest = np.zeros(self.num_documents, np.int64)
        np.maximum.at(longest, self.document, self.end - self.start)
        return longest

    @property
    def targets(self) -> Int64[np.ndarray, " D"]:
        """How many each document's prompt has with the longest answer."""
        return np.maximum(self.prompt + self.longest - 1, 0)

    def cut(self, learned: Learned, rules: Rules) -> Pieces:
        """A piece a document, of each answer of which something is learned; a document of answers is never split.

        Args:
            learned: which tokens have a weight.
            rules: how to truncate; by the others, what is longer than the context gives no piece.
        """
        dropped, most = trimmed(self.prompt, self.longest, rules)
        sizes = np.clip(most[self.document], 0, self.end - self.start)
        counts = learned.count(self.document, self.start - 1, sizes)
        fits = self.prompt - dropped > 0
        fits[self.document[counts == 0]] = False
        if not rules.too_long.startswith("truncate"):
            fits &= self.targets <= rules.context
        kept, weighed = (
            np.bincount(self.document, each, self.num_documents).astype(np.int64) for each in (sizes, counts)
        )
        pieces = Pieces(np.arange(self.num_documents), dropped, self.prompt - dropped + kept - 1, weighed)
        return pieces.only(fits)


@dataclass(frozen=True)
class Learned:
    """Where the tokens that have a weight lie, all documents' tokens one after another.

    Attributes:
        starts: the first token of each document.
        begins: the first token of each run.
        ends: one past its last.
        before: tokens with a weight before it.
    """

    starts: Int64[np.ndarray, " D"]
    begins: Int64[np.ndarray, " R"]
    ends: Int64[np.ndarray, " R"]
    before: Int64[np.ndarray, " R"]

    @classmethod
    def of(cls, lengths: Int64[np.ndarray, " D"], num_spans: Int64[np.ndarray, " D"], spans: np.ndarray) -> Learned:
        """From each document's tokens and spans; one without spans is learned throughout.

        Args:
            lengths: the tokens of each document.
            num_spans: and its spans.
            spans: these, one document's after another's.
        """
        starts = np.cumsum(lengths) - lengths
        of = np.repeat(np.arange(len(lengths)), num_spans)
        heavy = spans["weight"] > 0
        plain = (num_spans == 0) & (lengths > 0)
        begins = np.concatenate([spans["start"][heavy] + starts[of[heavy]], starts[plain]])
        ends = np.concatenate([spans["end"][heavy] + starts[of[heavy]], (starts + lengths)[plain]])
        order = np.argsort(begins, kind="stable")
        begins, ends = begins[order], ends[order]
        return cls(starts, begins, ends, np.cumsum(ends - begins) - (ends - begins))

    def count(
        self, document: Int64[np.ndarray, " S"], offset: Int64[np.ndarray, " S"], length: Int64[np.ndarray, " S"]
    ) -> Int64[np.ndarray, " S"]:
        """How many of some targets have a weight."""
        first = self.starts[document] + offset + 1
        return self._until(first + length) - self._until(first)

    def _until(self, at: Int64[np.ndarray, " S"]) -> Int64[np.ndarray, " S"]:
        """Tokens with a weight before a place."""
        if not len(self.begins):
            return np.zeros_like(at)
        run = np.searchsorted(self.begins, at, side="right") - 1
        inside = np.minimum(at, self.ends[run]) - self.begins[run]
        return np.where(run < 0, 0, self.before[run] + inside)
