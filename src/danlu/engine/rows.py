"""Learning from rows of an array: an update as that of sequences is, and other things to be told of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from danlu.engine.device import Device
from danlu.engine.learner import Measured
from danlu.engine.update import Updater


@dataclass(frozen=True)
class RowUpdater(Updater):
    """Moves a density by one step's rows, and measures without moving it; `pack_tokens` counts rows."""

    def ready(self, device: Device) -> None:
        """Nothing: networks of densities are seldom bound by products, so nobody compares them with a device's peak."""

    def passes_back(self) -> float:
        """See `Updater`; all of it is trained."""
        return 2.0

    def gradient(self, groups: Sequence[Any], step: int, told: Callable[[], Any] = lambda: None) -> Measured:
        """See `Learner`; rows are no tokens."""
        return replace(super().gradient(groups, step, told), tokens=0)

    def _turns(self, packs: Sequence[Sequence[int]], groups: Sequence[Any], rounds: int) -> Iterator[Any]:
        """This rank's packs; whole weights wait for nobody, so there are no empty ones."""
        return super()._turns(packs, groups, len(packs))

    def facts(self, measured: Measured, seconds: float, device: Device) -> dict[str, Any]:
        """See `Learner`."""
        return {
            "samples": measured.samples,
            "packs": measured.packs,
            "seconds": seconds,
            "samples_per_second": measured.samples / seconds,
        }
