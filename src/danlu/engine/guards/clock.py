"""Whether a run will be done in the time it was given."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable

from danlu.units import duration

_FIRST = 2
"""Turns that tell nothing of the others: compilers, first touches."""
_ENOUGH = 5
"""Turns that tell the pace."""
_RECENT = 50


class Clock:
    """Counts the time of this session, from its beginning to its end.

    Args:
        max_time: seconds it may take; None is no bound, and costs nothing.
        steps: updates of the whole run, or about so many; None when no one knows.
        began: when the session began, by `now`; by default now.
        now: what tells the time in seconds.
    """

    def __init__(
        self,
        max_time: float | None,
        steps: int | None,
        *,
        began: float | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit, self._steps, self._now = max_time, steps, now
        self._began = now() if began is None else began
        self._last = now()
        self._step = 0
        self._saving = 0.0
        self._turns = 0
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._said = False

    def turned(self, step: int, *, saving: float = 0.0) -> str | None:
        """To be told when an update and all that follows it is done; once a sentence, when the time will not suffice.

        Args:
            step: updates done.
            saving: seconds of it that went into a checkpoint.
        """
        if self._limit is None:
            return None
        now = self._now()
        self._turns += 1
        if self._turns > _FIRST:
            self._recent.append(now - self._last - saving)
        self._last, self._step, self._saving = now, step, max(self._saving, saving)
        return None if self._said or len(self._recent) < _ENOUGH else self._say()

    def over(self) -> bool:
        """Whether the next update, and the checkpoint that must follow it, may end too late."""
        if self._limit is None:
            return False
        return self._spent + max(self._recent, default=0.0) + self._saving > self._limit

    @property
    def _spent(self) -> float:
        return self._now() - self._began

    def _say(self) -> str | None:
        assert self._limit is not None
        if self._steps is None:
            return None
        pace = statistics.median(self._recent)
        needed, left = pace * (self._steps - self._step), self._limit - self._spent
        if needed <= left:
            return None
        self._said = True
        last = self._step + max(0, int((left - self._saving) / pace))
        return (
            f"at {duration(pace)} a step the run needs {duration(self._spent + needed)}, and run.max_time is "
            f"{duration(self._limit)}: it will end after about step {last:,}, to be gone on with by danlu resume"
        )
