"""What is wanted of a sequence model's last hidden states.

A model's forward takes readouts and gives each one's answer, so that the head is used inside forward (where sharded
weights are whole) and only for the rows that are asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from danlu.errors import UnsupportedError
from danlu.packed import Targets
from danlu.parts.cross_entropy import CrossEntropy, cross_entropy, log_probs


@dataclass(frozen=True)
class Head:
    """The map from hidden states h to logits: scale (h W^T + b), and c tanh of it / c where they are capped.

    Attributes:
        weight: W, ``[V, D]``.
        bias: b, ``[V]`` or None.
        scale: of the logits.
        softcap: c, or None.
    """

    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None = None
    scale: float = 1.0
    softcap: float | None = None

    def scaled(self, hidden: Float[Tensor, "R D"]) -> tuple[Float[Tensor, "R D"], Float[Tensor, " V"] | None]:
        """Hidden states and bias times the scale, so that nothing as wide as the vocabulary has to be."""
        if self.scale == 1.0:
            return hidden, self.bias
        return hidden * self.scale, None if self.bias is None else self.bias * self.scale


class Readout(ABC):
    """A question about the hidden states."""

    @abstractmethod
    def read(self, hidden: Float[Tensor, "T D"], head: Head) -> Any:
        """The answer."""

    def within(self, runs: Sequence[tuple[int, int]]) -> Readout:
        """The same of a pack that holds only these runs ``start:stop`` of the rows, in order, with others elsewhere.

        Raises:
            UnsupportedError: when the answers of several such packs do not add up to that of the whole.
        """
        what = f"{type(self).__name__} has no answer that adds up over ranks which hold some rows each"
        raise UnsupportedError(what, do="Ask one rank that holds the whole pack.")

    def moved(self, places: Int[Tensor, " T"]) -> Readout:
        """The same of a pack in which others were put between the rows: row i has become row ``places[i]``.

        Raises:
            UnsupportedError: when it does not know.
        """
        raise UnsupportedError(f"{type(self).__name__} does not know of rows that an adapter puts into a pack")


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

    def within(self, runs: Sequence[tuple[int, int]]) -> Likelihood:
        """The targets of these rows; sums over them add up to the whole."""
        starts = [0, *accumulate(stop - start for start, stop in runs)]
        parts = [self.targets.within(start, stop) for start, stop in runs]
        return replace(self, targets=Targets.join(parts, starts[:-1]))

    def moved(self, places: Int[Tensor, " T"]) -> Likelihood:
        """See `Readout`."""
        return replace(self, targets=_moved(self.targets, places))

    def read(self, hidden: Float[Tensor, "T D"], head: Head) -> CrossEntropy:
        """The sums."""
        t = self.targets
        rows, bias = head.scaled(hidden.index_select(0, t.rows))
        return cross_entropy(
            rows,
            head.weight,
            bias,
            t.tokens,
            t.weights,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            softcap=head.softcap,
        )


@dataclass(frozen=True)
class LogProbs(Readout):
    """log p of each target, each with its own gradient."""

    targets: Targets

    def moved(self, places: Int[Tensor, " T"]) -> LogProbs:
        """See `Readout`."""
        return LogProbs(_moved(self.targets, places))

    def read(self, hidden: Float[Tensor, "T D"], head: Head) -> Float[Tensor, " M"]:
        """The log-probabilities in nats, float32."""
        rows, bias = head.scaled(hidden.index_select(0, self.targets.rows))
        return log_probs(rows, head.weight, bias, self.targets.tokens, softcap=head.softcap)


@dataclass(frozen=True)
class Logits(Readout):
    """The logits of some rows."""

    rows: Int[Tensor, " R"]

    def moved(self, places: Int[Tensor, " T"]) -> Logits:
        """See `Readout`."""
        return Logits(places[self.rows])

    def read(self, hidden: Float[Tensor, "T D"], head: Head) -> Float[Tensor, "R V"]:
        """The logits, in the head's precision."""
        rows, bias = head.scaled(hidden[self.rows].to(head.weight.dtype))
        logits = rows @ head.weight.t()
        logits = logits if bias is None else logits + bias
        return logits if head.softcap is None else head.softcap * (logits / head.softcap).tanh()


@dataclass(frozen=True)
class Hidden(Readout):
    """The last hidden states of some rows."""

    rows: Int[Tensor, " R"]

    def moved(self, places: Int[Tensor, " T"]) -> Hidden:
        """See `Readout`."""
        return Hidden(places[self.rows])

    def read(self, hidden: Float[Tensor, "T D"], head: Head) -> Float[Tensor, "R D"]:
        """The hidden states, after the last normalisation."""
        return hidden[self.rows]


def _moved(targets: Targets, places: Int[Tensor, " T"]) -> Targets:
    return replace(targets, rows=places[targets.rows])
