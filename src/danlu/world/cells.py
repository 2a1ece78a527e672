"""Finite environments side by side: each is in a state that has a number, and draws chance of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from danlu.world.dynamics import Vectorized


class Cells(Vectorized):
    """Environments that show the number of the state they are in.

    Args:
        num_envs: N.
        limit: steps after which an episode is cut; None for never.
        options: what the environment takes.

    Attributes:
        cells: the state each is in, ``[N]`` int64.
        chances: what each draws from, as its seed began it.
    """

    size = 1

    def __init__(self, num_envs: int, limit: int | None, options: Mapping[str, Any]) -> None:
        super().__init__(num_envs, limit, options)
        self.cells = np.zeros(num_envs, np.int64)
        self.chances = [np.random.Generator(np.random.PCG64(0))] * num_envs

    def show(self, state: np.ndarray) -> np.ndarray:
        """See `Vectorized.show`."""
        return self.cells.copy()

    def begin(self, indices: Sequence[int], seeds: Sequence[int]) -> np.ndarray:
        """See `Stepper.begin`."""
        for index, seed in zip(indices, seeds, strict=True):
            self.chances[index] = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
            self.cells[index] = self.start(self.chances[index])
        self.elapsed[indices] = 0
        return self.cells[indices]

    def take(self, index: int, one: Self) -> None:
        """See `Vectorized.take`."""
        self.cells[index], self.chances[index] = one.cells[0], one.chances[0]
