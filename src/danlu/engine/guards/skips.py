"""Updates that were skipped one after another: when most are, a run goes nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.errors import RunError


class Skips:
    """Counts the updates that were skipped, or undone, one after another.

    Args:
        most: so many may be.
    """

    def __init__(self, most: int) -> None:
        self._most, self._count = most, 0

    def skipped(self, step: int, why: str) -> None:
        """An update was skipped.

        Raises:
            RunError: when it was one too many.
        """
        self._count += 1
        if self._count > self._most:
            what = f"{self._count} updates would be skipped one after another, the last at step {step}: {why}"
            raise RunError(what, do="Lower optimizer.lr, look at the data, or go on from an earlier checkpoint.")

    def taken(self) -> None:
        """An update was taken."""
        self._count = 0

    def state_dict(self) -> dict[str, Any]:
        """How many in a row, as JSON."""
        return {"skips": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._count = int(state.get("skips", 0))
