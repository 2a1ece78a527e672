"""Which samples go through together: a matter of memory, which changes no result."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from danlu.errors import DataError

LOOK_AHEAD = 1024
"""How many samples may wait for a pack that they fit."""


def pack(lengths: Sequence[int] | Int[np.ndarray, " N"], budget: int, look_ahead: int = LOOK_AHEAD) -> list[list[int]]:
    """Put samples into packs of at most `budget` tokens: best fit with a bounded look-ahead.

    Each pack begins with the sample that has waited longest, then takes, again and again, the longest of the next
    `look_ahead` samples that still fits (of equals the earliest), until none does.

    Args:
        lengths: tokens of each sample.
        budget: tokens a pack may hold.
        look_ahead: how many samples may wait at a time, at least 1; 1 keeps the order.

    Returns:
        Packs of indices; every index is in exactly one.

    Raises:
        DataError: when a sample is longer than the budget.

    Example:
        >>> pack([6, 5, 4, 3, 2], budget=10)
        [[0, 2], [1, 3, 4]]
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if sizes.size and sizes.max() > budget:
        index = int(np.argmax(sizes > budget))
        what = f"sample {index} has {sizes[index]} tokens, and a pack holds {budget}"
        raise DataError(what, do="Raise the tokens of a pack, or lower the context.")
    count = len(sizes)
    # One number orders by length, and of equals puts the earliest last: length * count + (count - 1 - index).
    ranks = (sizes * count + np.arange(count - 1, -1, -1)).tolist()
    waiting = sorted(ranks[:look_ahead])
    arrived = len(waiting)
    packed = bytearray(count)
    packs: list[list[int]] = []
    oldest = 0
    while waiting:
        oldest = packed.index(0, oldest)
        position = bisect_left(waiting, ranks[oldest])
        room, held = budget, []
        while position >= 0:
            length, reverse = divmod(waiting.pop(position), count)
            index = count - 1 - reverse
            packed[index] = 1
            held.append(index)
            room -= length
            if arrived < count:
                insort(waiting, ranks[arrived])
                arrived += 1
            position = bisect_left(waiting, (room + 1) * count) - 1
        packs.append(held)
    return packs
