"""In which order the numbers of a row stand at each step of a flow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from danlu.random import permutation

Mixing: TypeAlias = Literal["alternate", "shuffle"]
"""What is done to the order of numbers between steps: parts change places, or all are shuffled, once and for all."""


class Orders(nn.Module):
    """Ways from the order in which one step leaves numbers to that in which the next takes them.

    Way 0 is from a row as it is to the first step, way K from the last step to a row as it is.

    Args:
        before: for each of K steps, which number of a row it takes at each place.
        after: for each step, which number of a row it leaves at each place.
        drawn: whether they were drawn, and so are saved with the weights.
    """

    ways: Tensor
    back: Tensor
    homes: Tensor

    def __init__(self, before: Sequence[np.ndarray], after: Sequence[np.ndarray], *, drawn: bool) -> None:
        super().__init__()
        plain = np.arange(len(before[0]))
        ways = [np.argsort(a)[b] for a, b in zip((plain, *after), (*before, plain), strict=True)]
        self.stays = [not drawn and bool((way == plain).all()) for way in ways]
        for name, each in (("ways", ways), ("back", map(np.argsort, ways)), ("homes", map(np.argsort, before))):
            self.register_buffer(name, torch.from_numpy(np.stack(list(each))), persistent=drawn)

    def forward(self, k: int, x: Float[Tensor, "D N"]) -> Float[Tensor, "D N"]:
        """Way k."""
        return x if self.stays[k] else x.index_select(0, self.ways[k])

    def backward(self, k: int, x: Float[Tensor, "D N"]) -> Float[Tensor, "D N"]:
        """Way k, the other way round."""
        return x if self.stays[k] else x.index_select(0, self.back[k])

    def home(self, k: int, x: Float[Tensor, "D N"]) -> Float[Tensor, "D N"]:
        """What the k-th step takes, as a row."""
        return x.index_select(0, self.homes[k])


def of_halves(mixing: Mixing, size: int, num: int, seed: int) -> Orders:
    """For steps that take two halves, the first being the larger in even steps, and leave them the other way round.

    Args:
        mixing: `alternate` takes every other number for a half.
        size: numbers of a row.
        num: how many steps.
        seed: what a shuffle follows from.
    """
    before, after = [], []
    for k in range(num):
        order = np.arange(size)
        if mixing == "shuffle" and k:
            order = permutation(size, seed, "order", k)
        else:
            order = np.concatenate([order[k % 2 :: 2], order[1 - k % 2 :: 2]])
        first = (size + 1 - k % 2) // 2
        before.append(order)
        after.append(np.concatenate([order[first:], order[:first]]))
    return Orders(before, after, drawn=mixing == "shuffle")


def of_wholes(mixing: Mixing, size: int, num: int, seed: int) -> Int[Tensor, "K D"]:
    """For steps that take all numbers of a row one after another: which of them comes when.

    Args:
        mixing: `alternate` turns the order round after each step.
        size: numbers of a row.
        num: how many steps, K.
        seed: what a shuffle follows from.
    """
    plain = np.arange(size)
    shuffled = mixing == "shuffle"
    each = [permutation(size, seed, "order", k) if shuffled and k else plain[:: -1 if k % 2 else 1] for k in range(num)]
    return torch.from_numpy(np.stack(each))
