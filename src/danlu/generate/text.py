"""Text from tokens as they come, never half a character."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from danlu.data.tokenizer import Tokenizer

_UNFINISHED = "\ufffd"
"""What decoding gives for the bytes of a character whose last ones are still to come."""


def pieces(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Iterable[int]) -> Iterator[str]:
    """The text that tokens add behind a prompt, piece by piece; joined, the whole of it.

    A token's text may depend on the one before it (a space between words, the first bytes of a character), so what is
    new is the difference between the text with it and without. Bytes that are no text come out as U+FFFD once that is
    certain.

    Example:
        >>> tokenizer = Tokenizer.train_bpe([], 257)
        >>> list(pieces(tokenizer, tokenizer.encode("a").tolist(), tokenizer.encode("é!").tolist()))
        ['é', '!']
    """
    ids, known, done = list(prompt), 0, len(prompt)
    for token in tokens:
        ids.append(token)
        before, after = tokenizer.decode(ids[known:done]), tokenizer.decode(ids[known:])
        if len(after) > len(before) and not after.endswith(_UNFINISHED):
            yield after[len(before) :]
            known, done = done, len(ids)
    if rest := tokenizer.decode(ids[known:])[len(tokenizer.decode(ids[known:done])) :]:
        yield rest
