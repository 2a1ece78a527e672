"""What is wanted of a sequence model's last hidden states.

A model's forward takes readouts and gives each one's answer, so that the head is used inside forward (where sharded
weights are whole) and only for the rows that are asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, ClassVar

import torch
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
        scores: whether it gives one score a row (V is 1) instead of logits over tokens.
    """

    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None = None
    scale: float = 1.0
    softcap: float | None = None
    scores: bool = False

    def scaled(self, hidden: Float[Tensor, "R D"]) -> tuple[Float[Tensor, "R D"], Float[Tensor, " V"] | None]:
        """Hidden states and bias times the scale, so that nothing as wide as the vocabulary has to be.

        Raises:
            UnsupportedError: when there are no logits.
        """
        if self.scores:
            raise UnsupportedError(SCORES, do="Ask the language model that it was made of.")
        if self.scale == 1.0:
            return hidden, self.bias
        return hidden * self.scale, None if self.bias is None else self.bias * self.scale


SCORES = "the model scores sequences, and predicts no tokens"
"""What is wrong with asking a reward model for tokens."""


class Readout(ABC):
    """A question about the hidden states.

    Class attributes:
        adds_up: what ranks that hold some of the rows each are given: shares of the answer, which add up; or, each
            of them, all of it.
    """

    adds_up: ClassVar[bool] = True

    @abstractmethod
    def read(self, hidden: Float[Tensor, "T D"], head: Head) -> Any:
        """The answer."""

    def within(self, runs: Sequence[tuple[int, int]]) -> Readout:
        """The same of a pack that holds only these runs ``start:stop`` of the rows, in order, with others elsewhere.

        Raises:
            UnsupportedError: when the answers of several such packs do not come to that of the whole.
        """
        what = f"{type(self).__name__} has no answer that adds up over ranks which hold some rows each"
        raise UnsupportedError(what, do="Ask one rank that holds the whole pack.")

    def whole(self, part: Any, runs: Sequence[tuple[int, int]], add: Callable[[Tensor], Tensor]) -> Any:
        """What a rank is given, from the answer of `within` to its runs of the rows.

        Args:
            part: the answer.
            runs: this rank's.
            add: the sum of a tensor over all ranks that hold rows of the pack.
        """
        return part

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

    adds_up: ClassVar[bool] = False
    targets: Targets

    def within(self, runs: Sequence[tuple[int, int]]) -> LogProbs:
        """The targets of these rows."""
        held, rows = _held(self.targets.rows, runs)
        return LogProbs(Targets(rows, self.targets.tokens[held], self.targets.weights[held]))

    def whole(self, part: Tensor, runs: Sequence[tuple[int, int]], add: Callable[[Tensor], Tensor]) -> Tensor:
        """All log-probabilities, on every rank."""
        return _everywhere(part, self.targets.rows, runs, add)

    def moved(self, places: Int[Tensor, " T"]) -> LogProbs:
        """See `Readout`."""
        return LogProbs(_moved(self.targets, places))

    def read(self, hidden: Float[Tensor, "T D"], head: Head) -> Float[Tensor, " M"]:
        """The log-probabilities in nats, float32."""
        rows, bias = head.scaled(hidden.index_select(0, self.targets.rows))
        return log_probs(rows, head.weight, bias, self.targets.tokens, softcap=head.softcap)


@dataclass(frozen=True)
class Values(Readout):
    """One score for each of some rows, by a model whose head gives scores."""

    adds_up: ClassVar[bool] = False
    rows: Int[Tensor, " R"]

    def within(self, runs: Sequence[tuple[int, int]]) -> Values:
        """Those of these rows."""
        return Values(_held(self.rows, runs)[1])

    def moved(self, places: Int[Tensor, " T"]) -> Values:
        """See `Readout`."""
        return Values(places[self.rows])

    def whole(self, part: Tensor, runs: Sequence[tuple[int, int]], add: Callable[[Tensor], Tensor]) -> Tensor:
        """All scores, on every rank."""
        return _everywhere(part, self.rows, runs, add)

    def read(self, hidden: Float[Tensor, "T D"], head: Head) -> Float[Tensor, " R"]:
        """The scores, float32.

        Raises:
            UnsupportedError: when the model has a head over tokens.
        """
        if not head.scores:
            raise UnsupportedError("the model predicts tokens, and scores no sequences", do="Ask a reward model.")
        precise = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        return (hidden.index_select(0, self.rows).to(precise) @ head.weight.to(precise).t()).squeeze(1)


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


def _held(rows: Int[Tensor, " R"], runs: Sequence[tuple[int, int]]) -> tuple[Int[Tensor, " H"], Int[Tensor, " H"]]:
    """Which of some rows lie in these runs, run by run; and where they lie when the runs are put end to end."""
    inside = [((rows >= start) & (rows < stop)).nonzero().squeeze(1) for start, stop in runs]
    begins = accumulate((stop - start for start, stop in runs), initial=0)
    moved = [rows[held] - start + begin for held, (start, _), begin in zip(inside, runs, begins, strict=False)]
    return torch.cat(inside), torch.cat(moved)


def _everywhere(
    part: Float[Tensor, " H"],
    rows: Int[Tensor, " R"],
    runs: Sequence[tuple[int, int]],
    add: Callable[[Tensor], Tensor],
) -> Float[Tensor, " R"]:
    """What every rank is given of values that each has of its own rows."""
    held, _ = _held(rows, runs)
    return add(part.new_zeros(len(rows)).index_copy(0, held, part))


def _moved(targets: Targets, places: Int[Tensor, " T"]) -> Targets:
    return replace(targets, rows=places[targets.rows])
