"""What is wanted of a sequence model's last hidden states.

A model's forward takes readouts and gives each one's answer, so that the head is used inside forward (where sharded
weights are whole) and only for the rows that are asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from danlu.packed import Targets
from danlu.parts.cross_entropy import CrossEntropy, cross_entropy, log_probs


@dataclass(frozen=True)
class Head:
    """The map from hidden states to logits.

    Attributes:
        weight: ``[V, D]``.
        bias: ``[V]`` or None.
    """

    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None = None


class Readout(ABC):
    """A question about the hidden states."""

    @abstractmethod
    def read(self, hidden: Float[Tensor, "T D"], head: Head) -> Any:
        """The answer."""


@dataclass(frozen=True)
class Likelihood(Readout):
    """Weighted sums of the targets' cross-entropy; the fastest way to a likelihood's gradient.

    Attributes:
        targets: what is to be predicted.
        label_smoothing: in [0, 1).
        z_loss: the weight of the squared log-normaliser.
    """

    targets: Targets
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def read(self, hidden: Float[Tensor, "T D"], head: Head) -> CrossEntropy:
        """The sums."""
        t = self.targets
        rows, options = hidden[t.rows], {"label_smoothing": self.label_smoothing, "z_loss": self.z_loss}
        return cross_entropy(rows, head.weight, head.bias, t.tokens, t.weights, **options)


@dataclass(frozen=True)
class LogProbs(Readout):
    """log p of each target, each with its own gradient."""

    targets: Targets

    def read(self, hidden: Float[Tensor, "T D"], head: Head) -> Float[Tensor, " M"]:
        """The log-probabilities in nats, float32."""
        return log_probs(hidden[self.targets.rows], head.weight, head.bias, self.targets.tokens)


@dataclass(frozen=True)
class Logits(Readout):
    """The logits of some rows."""

    rows: Int[Tensor, " R"]

    def read(self, hidden: Float[Tensor, "T D"], head: Head) -> Float[Tensor, "R V"]:
        """The logits, in the head's precision."""
        logits = hidden[self.rows].to(head.weight.dtype) @ head.weight.t()
        return logits if head.bias is None else logits + head.bias


@dataclass(frozen=True)
class Hidden(Readout):
    """The last hidden states of some rows."""

    rows: Int[Tensor, " R"]

    def read(self, hidden: Float[Tensor, "T D"], head: Head) -> Float[Tensor, "R D"]:
        """The hidden states, after the last normalisation."""
        return hidden[self.rows]
