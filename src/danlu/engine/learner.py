"""What the loop asks of whatever learns.

Of sequences that is `danlu.engine.update`, from acting `danlu.engine.turns`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from danlu.engine.device import Device
from danlu.engine.parallel import Parallel


@dataclass(frozen=True)
class Measured:
    """What an update was seen to do, over all ranks.

    Attributes:
        metrics: the loss and the method's metrics.
        samples, tokens, packs: how many went through.
        flops: operations of matrix products.
        told: what each rank had to say, in the order of ranks.
    """

    metrics: dict[str, float]
    samples: int
    tokens: int
    packs: int
    flops: float
    told: Sequence[Any]


class Learner(ABC):
    """Moves weights by what was drawn, and measures without moving them."""

    parallel: Parallel
    optimizer: torch.optim.Optimizer

    @property
    @abstractmethod
    def policy(self) -> nn.Module:
        """What is trained."""

    @property
    @abstractmethod
    def kept(self) -> dict[str, Tensor]:
        """What of it a checkpoint holds, by name."""

    @property
    def torn(self) -> bool:
        """Whether a fault has left the weights between two updates, so that they are not to be saved."""
        return False

    def ready(self, device: Device) -> None:  # noqa: B027 - most have nothing to do
        """Measure or make what is needed before the first update."""

    @abstractmethod
    def groups(self, samples: Sequence[Any]) -> list[Any]:
        """This rank's share of an update's samples, as they go through."""

    @abstractmethod
    def gradient(self, groups: Sequence[Any], step: int, told: Callable[[], Any] = lambda: None) -> Measured:
        """Leave in every parameter the gradient of the step's loss over all ranks.

        Args:
            groups: this rank's.
            step: updates done before.
            told: asked for what this rank has to say to the others.
        """

    def places(self, groups: Sequence[Any]) -> list[str]:
        """Where some groups come from, where they come from files."""
        return []

    @abstractmethod
    def blame(self, groups: Sequence[Any], step: int) -> str:
        """Because of what the loss or gradient that was just made is not finite, as far as that can be told."""

    @abstractmethod
    def clip(self) -> float:
        """Scale the gradient down where it is too long; its norm before that."""

    @abstractmethod
    def move(self, lr: float) -> None:
        """Take the step."""

    def moved(self, norm: float, lr: float) -> dict[str, float]:
        """What is written down of how gradients moved the weights.

        Args:
            norm: what `clip` said.
            lr: the learning rate.
        """
        return {"grad_norm": norm, "lr": lr}

    @abstractmethod
    def measure(self, samples: Iterable[Any]) -> dict[str, float]:
        """What it comes to on what is held out, nothing random and nothing moved."""

    @abstractmethod
    def facts(self, measured: Measured, seconds: float, device: Device) -> dict[str, Any]:
        """What is written down of an update beside its metrics: how much, how fast."""

    def regret(self, measured: Mapping[str, float]) -> float | None:
        """What the best checkpoint has the least of, as it was measured; None where nothing was."""
        return measured.get("loss")
