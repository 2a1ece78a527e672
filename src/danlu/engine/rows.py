"""Learning from rows of an array: an update as that of sequences is, and other things to be told of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from danlu.engine.device import Device
from danlu.engine.learner import Measured
from danlu.engine.update import Updater


@dataclass(frozen=True)
class RowUpdater(Updater):
    """Moves a density by one step's rows, and measures without moving it; `pack_tokens` counts rows.

    Attributes:
        image_size: how many numbers an image has, of which a likelihood is told in bits, too; None where rows are none.
    """

    image_size: int | None = None

    def ready(self, device: Device) -> None:
        """Nothing: networks of densities are seldom bound by products, so nobody compares them with a device's peak."""

    @property
    def kept(self) -> dict[str, Tensor]:
        """See `Learner`: buffers too, since how rows are shown to the network is as much of it as its weights."""
        return dict(self.policy.state_dict())

    @cached_property
    def trained(self) -> list[nn.Parameter]:
        """See `Updater`; found once, which takes as long as a layer of a small network."""
        return super().trained

    def passes_back(self) -> float:
        """See `Updater`; all of it is trained."""
        return 2.0

    def gradient(self, groups: Sequence[Any], step: int, told: Callable[[], Any] = lambda: None) -> Measured:
        """See `Learner`; rows are no tokens."""
        measured = super().gradient(groups, step, told)
        return replace(measured, metrics=self._in_bits(measured.metrics), tokens=0)

    def measure(self, samples: Iterable[Any]) -> dict[str, float]:
        """See `Learner`."""
        return self._in_bits(super().measure(samples))

    def _in_bits(self, metrics: dict[str, float]) -> dict[str, float]:
        if self.image_size is None or "nll" not in metrics:
            return metrics
        return metrics | {"bits_per_dim": metrics["nll"] / (self.image_size * math.log(2))}

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
