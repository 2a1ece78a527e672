"""Names, as a sentence lists them."""

from __future__ import annotations

from collections.abc import Sequence


def listed(names: Sequence[object], most: int = 3) -> str:
    """The first of some names, and how many more there are.

    Example:
        >>> listed(["a.jsonl:1", "a.jsonl:7"]), listed(range(6))
        ('a.jsonl:1, a.jsonl:7', '0, 1, 2 and 3 more')
    """
    rest = len(names) - most
    return ", ".join(str(name) for name in names[:most]) + (f" and {rest} more" if rest > 0 else "")
