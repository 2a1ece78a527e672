"""Runs that end in the middle, within the process."""

from __future__ import annotations

from typing import Any


class EndedError(Exception):
    """A listener that has heard enough."""


class Until:
    """Ends a process's work after so many updates, without a word."""

    def __init__(self, step: int) -> None:
        self._step = step

    def metrics(self, row: Any) -> None:
        if row["step"] >= self._step:
            raise EndedError

    def event(self, event: Any) -> None: ...

    def close(self) -> None: ...
