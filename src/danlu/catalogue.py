"""Every exported method by four words: what it is for, how it learns, what from, and what it keeps that in."""

from __future__ import annotations

from collections.abc import Callable

from danlu.contracts import Method
from danlu.errors import RecipeError
from danlu.registry import Export, exported

WORDS: dict[str, Callable[[type[Method]], str]] = {
    "goal": lambda method: method.goal,
    "mechanism": lambda method: method.mechanism,
    "data": lambda method: method.learns_from,
    "level": lambda method: method.level,
}
"""The words, and where a method says what is its own."""


def methods_by(word: str) -> dict[str, list[Export]]:
    """The methods by what they say of that word; both in the order of the alphabet.

    Args:
        word: "goal", "mechanism", "data" or "level".

    Example:
        >>> [entry.name for entry in methods_by("mechanism")["prospect theory"]]
        ['kto']

    Raises:
        RecipeError: for another word.
    """
    if word not in WORDS:
        known = ", ".join(WORDS)
        raise RecipeError(f"methods are not listed by '{word}'", where="--by", do=f"Known: {known}.")
    groups: dict[str, list[Export]] = {}
    for entry in exported("method"):
        groups.setdefault(WORDS[word](entry.target), []).append(entry)
    return dict(sorted(groups.items()))
