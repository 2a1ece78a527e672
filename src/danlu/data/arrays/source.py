"""Which rows make one update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int64

from danlu.data.order import permutation
from danlu.errors import CheckpointError, DataError


class ArraySource:
    """Draws the numbers of rows, a step at a time, each pass over the data in an order of its own.

    Passes follow one another without a seam, so every step has `step_rows` rows, whatever their number.

    Args:
        rows: how many there are.
        step_rows: rows of a step.
        block: rows that are given together, the last ones of a step being fewer, maybe; None is all of a step.
        seed: orders follow from it.
        epochs: passes after which there are no more; None is without end.

    Attributes:
        consumed: rows drawn so far, over all passes.
    """

    def __init__(
        self, rows: int, step_rows: int, *, block: int | None = None, seed: int = 0, epochs: int | None = None
    ) -> None:
        self._rows, self._step, self._seed = rows, step_rows, seed
        self._block = min(block or step_rows, step_rows)
        self._limit = None if epochs is None else epochs * rows
        self.consumed = 0
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    @property
    def exhausted(self) -> bool:
        """Whether there are no more rows."""
        return self._limit is not None and self.consumed >= self._limit

    @property
    def epochs(self) -> float:
        """Passes over the data so far, the unfinished one by its share."""
        return self.consumed / self._rows

    def draw(self) -> list[Int64[np.ndarray, " B"]]:
        """The numbers of the next step's rows, block by block; fewer at the end of the last pass, and none after it."""
        num = self._step if self._limit is None else min(self._step, self._limit - self.consumed)
        drawn = self._next(num)
        self.consumed += num
        if num <= self._block:
            return [drawn] if num else []
        return [drawn[start : start + self._block] for start in range(0, num, self._block)]

    def _next(self, num: int) -> Int64[np.ndarray, " B"]:
        parts, at = [], self.consumed
        while num:
            epoch, start = divmod(at, self._rows)
            if epoch != self._epoch:
                self._epoch, self._order = epoch, permutation(self._rows, self._seed, epoch)
            parts.append(self._order[start : start + num])
            at += len(parts[-1])
            num -= len(parts[-1])
        return parts[0] if len(parts) == 1 else np.concatenate([self._order[:0], *parts])

    def state_dict(self) -> dict[str, Any]:
        """What was consumed so far, and of how many, as plain JSON."""
        return {"consumed": self.consumed, "rows": self._rows, "seed": self._seed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where a state was taken: the next row drawn is the one that came next then.

        Raises:
            DataError: when the state is of other data or another order of them.
            CheckpointError: when it is not a state of rows.
        """
        try:
            consumed, rows, seed = (int(state[name]) for name in ("consumed", "rows", "seed"))
        except (KeyError, TypeError, ValueError) as fault:
            raise CheckpointError("the state is not one of rows of an array", do="Start anew.") from fault
        if (rows, seed) != (self._rows, self._seed):
            what = f"the run drew from {rows} rows with seed {seed}, and now there are {self._rows} with {self._seed}"
            raise DataError(what, where="data.train", do="Give it the data it began with, or start anew.")
        self.consumed = consumed
