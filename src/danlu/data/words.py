"""Encoding each different word of a text once: what makes a byte-level tokenizer's work several times less.

GPT-2 cuts a text into words before it merges anything, so equal words may be encoded once and the ids put together;
they are those of the whole text, to the last one. Its rule is applied here to ASCII, where Python and the tokenizer
agree on what a letter, a number and a space are. Other text is cut where no version of Unicode could disagree: a lone
space parts two words whatever surrounds it.

References:
    Radford et al., "Language Models are Unsupervised Multitask Learners", 2019; the rule is in its code,
    https://github.com/openai/gpt-2/blob/master/src/encoder.py
"""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int64, UInt

Encode = Callable[[Sequence[str]], tuple[UInt[np.ndarray, " T"], Int64[np.ndarray, " N"]]]

_WORD = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII)
# Non-space characters and the gaps inside a piece: of two or more, of another sort than a space, or at the text's end.
# Python counts more characters as space than the tokenizer does, which only makes fewer cuts.
_WORDS = re.compile(r"\s*\S+(?:(?:\s\s+|[^\S ]| \Z)\S*)*|\s+")


MOST_PIECES = 1 << 19
"""How many different pieces are remembered."""


def pieces(text: str) -> list[str]:
    """A text cut into words, or where it is not ASCII before every space that stands alone.

    Example:
        >>> pieces("to be,  or not")
        ['to', ' be', ',', ' ', ' or', ' not']
        >>> pieces("être,  ou non")
        ['être,  ou', ' non']
    """
    return (_WORD if text.isascii() else _WORDS).findall(text)


def can_be_cut(tokenizer_json: str) -> bool:
    """Whether a tokenizer splits as GPT-2's does, and nothing in it looks further than a word."""
    parts = json.loads(tokenizer_json)
    split = parts["pre_tokenizer"] or {}
    return (
        split.get("type") == "ByteLevel"
        and split.get("use_regex", True)
        and not split.get("add_prefix_space", True)
        and parts["normalizer"] is None
        and not parts["model"].get("dropout")
        and all(token["special"] for token in parts["added_tokens"])
    )


def encode_by_pieces(texts: Sequence[str], encode: Encode) -> tuple[UInt[np.ndarray, " T"], Int64[np.ndarray, " N"]]:
    """What `encode` gives for the texts, from what it gives for their different pieces.

    Args:
        texts: what to encode.
        encode: gives the ids of some texts one after another, and how many are whose.
    """
    return PieceEncoder(encode)(texts)


class PieceEncoder:
    """`encode_by_pieces` that remembers pieces from one call to the next, up to `MOST_PIECES`."""

    def __init__(self, encode: Encode) -> None:
        """Know no piece yet."""
        self._encode = encode
        self._numbers: defaultdict[str, int] = defaultdict(itertools.count().__next__)
        self._ids: tuple[np.ndarray, np.ndarray] | None = None

    def __call__(self, texts: Sequence[str]) -> tuple[UInt[np.ndarray, " T"], Int64[np.ndarray, " N"]]:
        """The ids of the texts one after another, and how many are whose."""
        if len(self._numbers) > MOST_PIECES:
            self._forget()
        cut = [list(map(self._numbers.__getitem__, pieces(text))) for text in texts]
        counts = np.fromiter(map(len, cut), np.int64, len(cut))
        drawn = np.fromiter(itertools.chain.from_iterable(cut), np.int64, int(counts.sum()))
        ids, lengths = self._learn()
        starts = np.cumsum(lengths) - lengths
        drawn_lengths = lengths[drawn]
        ends = np.cumsum(drawn_lengths)
        total = int(ends[-1]) if len(ends) else 0
        where = np.repeat(starts[drawn] - (ends - drawn_lengths), drawn_lengths) + np.arange(total)
        bounds = np.concatenate([[0], ends])[np.cumsum(counts)]
        return ids[where], np.diff(bounds, prepend=0)

    def _learn(self) -> tuple[UInt[np.ndarray, " P"], Int64[np.ndarray, " Q"]]:
        """The ids of all pieces that are known by number, those of new ones encoded now."""
        num_known = 0 if self._ids is None else len(self._ids[1])
        try:
            fresh = self._encode(list(itertools.islice(self._numbers, num_known, None)))
        except BaseException:
            self._forget()  # pieces without ids must not be taken for known
            raise
        known = self._ids
        self._ids = fresh if known is None else (np.append(known[0], fresh[0]), np.append(known[1], fresh[1]))
        return self._ids

    def _forget(self) -> None:
        self._numbers, self._ids = defaultdict(itertools.count().__next__), None
