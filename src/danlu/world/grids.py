"""Grid worlds side by side: the steps of `danlu.world.gridworld.GridWorld`, looked up for all of them at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from danlu.world.cells import Cells
from danlu.world.gridworld import MOVES, GridWorld


class Grids(Cells):
    """Many of one grid world.

    A grid whose target does not end the episode may go on for ever, so it is saved by where it is, not by what it did.
    """

    keeps_state = True

    def __init__(self, num_envs: int, limit: int | None, options: Mapping[str, Any]) -> None:
        super().__init__(num_envs, limit, options)
        self.grid = GridWorld(**options)
        limits = [n for n in (limit, self.grid.max_steps) if n is not None]
        self.limit = min(limits, default=None)

    def start(self, chance: np.random.Generator) -> int:
        """See `Vectorized.start`."""
        starts = self.grid.layout.starts
        return int(starts[chance.integers(len(starts))])

    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Vectorized.advance`."""
        layout, slip = self.grid.layout, self.grid.slip
        if slip:
            actions = actions.copy()
            for index, chance in enumerate(self.chances):
                if chance.random() < slip:
                    actions[index] = chance.integers(len(MOVES))
        rewards = layout.rewards[self.cells, actions]
        self.cells = layout.following[self.cells, actions]
        return rewards, layout.terminal[self.cells]

    def save(self) -> Mapping[str, Any]:
        """See `Stepper.save`."""
        chances = [chance.bit_generator.state for chance in self.chances] if self.grid.slip else []
        return {"cells": self.cells.tolist(), "elapsed": self.elapsed.tolist(), "chances": chances}

    def load(self, saved: Mapping[str, Any]) -> np.ndarray:
        """See `Stepper.load`."""
        self.cells = np.array(saved["cells"], np.int64)
        self.elapsed = np.array(saved["elapsed"], np.int64)
        for index, state in enumerate(saved["chances"]):
            generator = np.random.PCG64(0)
            generator.state = state
            self.chances[index] = np.random.Generator(generator)
        return self.cells.copy()
