"""Losses that jump.

A loss is a spike when it lies far above the median of those just before it, in units of their scaled median absolute
deviation: neither follows the spikes themselves, nor the tails that losses of small updates have.

References:
    Leys et al., 2013, "Detecting outliers: do not use standard deviation around the mean, use absolute deviation around
    the median", https://doi.org/10.1016/j.jesp.2013.03.013
    Chowdhery et al., 2022, "PaLM", section 5.1 (spikes, and leaving out their batches),
    https://arxiv.org/abs/2204.02311
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from danlu.engine.guards.words import listed
from danlu.errors import CheckpointError

_NORMAL = 1.4826
"""What makes of a median absolute deviation the standard deviation of a normal curve."""
_SMALLEST = 1e-3
"""Deviations are taken as at least this share of the median, so that a flat curve has no spikes of nothing."""
_ENOUGH = 0.25
"""The share of the window that must be there before anything is usual."""


@dataclass(frozen=True)
class Jump:
    """A loss that is a spike.

    Attributes:
        loss: what it was.
        usual: the median of those before it.
        bound: above which it is a spike.
    """

    loss: float
    usual: float
    bound: float

    def sentence(self, step: int, origins: Sequence[str] = ()) -> str:
        """What happened at a step, and on which samples."""
        among = f", on samples {listed(origins)}" if origins else ""
        usual = f"{self.usual:.4g} is usual and above {self.bound:.4g} is a spike"
        return f"step {step} has loss {self.loss:.4g}, where {usual}{among}"


class Spike:
    """Knows the last losses; a function of the losses of the run alone.

    Args:
        window: how many it knows.
        threshold: scaled deviations above the median that make a spike.
    """

    def __init__(self, *, window: int, threshold: float) -> None:
        self._losses: deque[float] = deque(maxlen=window)
        self._sorted: list[float] = []
        self._threshold = threshold
        self._enough = max(3, math.ceil(_ENOUGH * window))

    def note(self, loss: float) -> Jump | None:
        """Whether this loss is a spike; from now on it is one of the last, since it may have come to stay.

        What is not finite is another guard's, and is not counted.
        """
        if not math.isfinite(loss):
            return None
        jump = self._jump(loss) if len(self._losses) >= self._enough else None
        self._append(loss)
        return jump

    def state_dict(self) -> dict[str, Any]:
        """The last losses, as JSON."""
        return {"losses": list(self._losses)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; of a longer window, its end.

        Raises:
            CheckpointError: when it is no such state.
        """
        losses = state.get("losses")
        if not isinstance(losses, list) or not all(isinstance(loss, int | float) for loss in losses):
            raise CheckpointError("the losses before the checkpoint are not in it", do="Resume from another one.")
        self._losses.clear()
        self._losses.extend(losses)
        self._sorted = sorted(self._losses)

    def _append(self, loss: float) -> None:
        if len(self._losses) == self._losses.maxlen:
            del self._sorted[bisect_left(self._sorted, self._losses[0])]
        self._losses.append(loss)
        insort(self._sorted, loss)

    def _jump(self, loss: float) -> Jump | None:
        middle = len(self._sorted) // 2
        usual = self._sorted[middle] if len(self._sorted) % 2 else sum(self._sorted[middle - 1 : middle + 1]) / 2
        if loss <= usual:
            return None
        deviation = statistics.median(abs(known - usual) for known in self._losses)
        bound = usual + self._threshold * max(_NORMAL * deviation, _SMALLEST * abs(usual))
        return Jump(loss, usual, bound) if loss > bound else None
