"""From a prompt and its answers to one run of tokens: the prompt once, then each answer behind it.

Each path, the prompt with one answer, is encoded as any other row. The prompt is what all of them begin with before
anything is learned; so its ids are the same in front of every answer, wherever tokens may lie across its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32, Int64

from danlu.data.document import Judged, Path, Preference, Tokens
from danlu.errors import DataError


def encode_answers(
    encode: Callable[[Path, str], Tokens], document: Preference | Judged, where: str, *, everything: bool = False
) -> Tokens:
    """The tokens of a prompt and its answers, end to end; an answer ends with the last token that is learned of it.

    Args:
        encode: gives the tokens of a path, those of its prompt having no weight.
        document: what is encoded.
        where: its ``file:line``, for errors.
        everything: whether all tokens of an answer are learned, whoever says them.

    Raises:
        DataError: when there is no prompt, or nothing of an answer is learned.
    """
    ids, weights = [], []
    for path in document.paths.values():
        tokens = encode(path, where)
        ids.append(tokens.ids)
        weights.append(np.ones(len(tokens.ids), np.float32) if tokens.weights is None else tokens.weights)
    shared = _shared(ids, weights)
    if not shared:
        do = "Give a prompt, or a tokenizer with a first token (data.add_bos)."
        raise DataError("no token comes before the answers", where=where, do=do)
    parts = [(ids[0][:shared], np.zeros(shared, np.float32))]
    for name, own, counts in zip(document.paths, ids, weights, strict=True):
        learned = np.flatnonzero(counts)
        if not len(learned):
            do = "Give the answer words, or look at data.train_on."
            raise DataError(f"nothing of the {name} answer is learned", where=where, do=do)
        end = len(own) if everything else int(learned[-1]) + 1
        behind = counts[shared:end]
        parts.append((own[shared:end], np.ones_like(behind) if everything else behind))
    begins = np.cumsum([len(part) for part, _ in parts])[:-1]
    joined = [np.concatenate(of) for of in zip(*parts, strict=True)]
    return Tokens(joined[0], joined[1], tuple(begins.tolist()))


def _shared(ids: Sequence[Int64[np.ndarray, " _"]], weights: Sequence[Float32[np.ndarray, " _"]]) -> int:
    """How many tokens all paths begin with before one of them has a weight."""
    least = min(int(np.append(np.flatnonzero(own), len(own))[0]) for own in weights)
    differ = [np.flatnonzero(own[:least] != ids[0][:least]) for own in ids]
    return min(int(np.append(found, least)[0]) for found in differ)
