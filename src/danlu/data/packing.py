"""Which samples go through together: a matter of memory and time, which changes no result."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from danlu.errors import DataError

LOOK_AHEAD = 1024
"""How many samples may wait for a pack that they fit."""
BALANCED = 64
"""Packs, one after another, whose costs are made equal."""
_EVEN_LENGTH = 4096
"""The length at which a sample's attention costs as much as all else: about six times a usual model's width."""


def pack(lengths: Sequence[int] | Int[np.ndarray, " N"], budget: int, look_ahead: int = LOOK_AHEAD) -> list[list[int]]:
    """Put samples into as few packs as `best_fit` does, but such that neighbouring ones take about as long.

    A sample of n tokens costs n + n^2 / `_EVEN_LENGTH`, its attention being quadratic. The samples of some packs are
    dealt out anew: the dearest first, each to the pack that has the least cost and still holds it (longest processing
    time first). Where a sample fits none of them, or nothing is gained, best fit's packs stay as they are.

    Args:
        lengths: tokens of each sample.
        budget: tokens a pack may hold.
        look_ahead: how many samples may wait at a time, at least 1; 1 keeps the order, and balances nothing.

    Returns:
        Packs of indices, rising; every index is in exactly one.

    Raises:
        DataError: when a sample is longer than the budget.

    References:
        Graham, 1969, "Bounds on multiprocessing timing anomalies", https://doi.org/10.1137/0117039

    Example:
        >>> best_fit([6, 5, 4, 2], budget=10)
        [[0, 2], [1, 3]]
        >>> pack([6, 5, 4, 2], budget=10)
        [[0, 3], [1, 2]]
    """
    if sum(lengths) <= budget:
        return [list(range(len(lengths)))] if len(lengths) else []
    sizes = np.asarray(lengths, dtype=np.int64)
    packs = best_fit(sizes, budget, look_ahead)
    if look_ahead == 1:
        return packs
    costs = (sizes * (_EVEN_LENGTH + sizes)).tolist()
    tokens = sizes.tolist()
    dealt: list[list[int]] = []
    for first in range(0, len(packs), BALANCED):
        dealt += _balance(packs[first : first + BALANCED], tokens, costs, budget)
    return [sorted(held) for held in dealt]


def deal(lengths: Sequence[int] | Int[np.ndarray, " N"], parts: int) -> list[list[int]]:
    """Deal samples out to so many parts that take about as long: the dearest first, each to the cheapest part.

    Args:
        lengths: tokens of each sample.
        parts: how many, at least 1.

    Returns:
        Indices of each part, rising; a part may be empty.

    References:
        Graham, 1969, "Bounds on multiprocessing timing anomalies", https://doi.org/10.1137/0117039

    Example:
        >>> deal([6, 5, 4, 2], parts=2)
        [[0, 3], [1, 2]]
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    costs = (sizes * (_EVEN_LENGTH + sizes)).tolist()
    dealt: list[list[int]] = [[] for _ in range(parts)]
    cheapest = [(0, number) for number in range(parts)]
    for cost, index in sorted((-cost, index) for index, cost in enumerate(costs)):
        held, number = cheapest[0]
        dealt[number].append(index)
        heapq.heapreplace(cheapest, (held - cost, number))
    return [sorted(held) for held in dealt]


def _balance(packs: list[list[int]], tokens: list[int], costs: list[int], budget: int) -> list[list[int]]:
    """The same samples in the same number of packs of about the same cost."""
    samples = sorted((-costs[index], index) for held in packs for index in held)
    dealt: list[list[int]] = [[] for _ in packs]
    room = [budget] * len(packs)
    waiting = [(0, number) for number in range(len(packs))]
    for cost, index in samples:
        passed = []
        while waiting and room[waiting[0][1]] < tokens[index]:
            passed.append(heapq.heappop(waiting))
        if not waiting:
            return packs
        held, number = waiting[0]
        dealt[number].append(index)
        room[number] -= tokens[index]
        heapq.heapreplace(waiting, (held - cost, number))
        for other in passed:
            heapq.heappush(waiting, other)
    dearest = max(sum(costs[index] for index in held) for held in packs)
    return dealt if max(held for held, _ in waiting) <= dearest else packs


def best_fit(
    lengths: Sequence[int] | Int[np.ndarray, " N"], budget: int, look_ahead: int = LOOK_AHEAD
) -> list[list[int]]:
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
        >>> best_fit([6, 5, 4, 3, 2], budget=10)
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
