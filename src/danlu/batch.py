"""What a method is given, and what goes through a model at once: samples, and forests with their targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from danlu.packed import Packed, Targets
from danlu.random import token_keys


class Sample(Protocol):
    """One sample of token data.

    Attributes:
        id: which one it is; randomness is keyed by it.
        tokens: the inputs and, one further, the targets: n + 1 ids.
        weights: how much each target counts, n of them (float32); None is one for all.
        num_bytes: the bytes of text that its targets with a weight stand for.
        origin: where it comes from, "file:line".
    """

    @property
    def id(self) -> int:
        """See the class."""
        ...

    @property
    def tokens(self) -> Any:
        """See the class."""
        ...

    @property
    def weights(self) -> Any:
        """See the class."""
        ...

    @property
    def num_bytes(self) -> float:
        """See the class."""
        ...

    @property
    def origin(self) -> str:
        """See the class."""
        ...


class Answers(Protocol):
    """One sample of a prompt and its answers: a pair of which one is preferred, or answers that were judged each.

    Attributes:
        id: which one it is; randomness is keyed by it.
        prompt: the ids before all answers, at least one.
        answers: each one's ids, at least one, with what ends it; of a pair the chosen, then the rejected one.
        weights: how much each id of each answer counts (float32); None is one for all.
        values: for each answer, numbers that came with it, by name: "desirable" (1 or 0), "margin", "score".
        num_bytes: the bytes of text of all answers.
        origin: where it comes from, "file:line".
    """

    @property
    def id(self) -> int:
        """See the class."""
        ...

    @property
    def prompt(self) -> Any:
        """See the class."""
        ...

    @property
    def answers(self) -> Sequence[Any]:
        """See the class."""
        ...

    @property
    def weights(self) -> Sequence[Any] | None:
        """See the class."""
        ...

    @property
    def values(self) -> Mapping[str, Sequence[float]]:
        """See the class."""
        ...

    @property
    def num_bytes(self) -> float:
        """See the class."""
        ...

    @property
    def origin(self) -> str:
        """See the class."""
        ...


@dataclass(frozen=True, eq=False)
class Sequences:
    """The sequences of a batch, where a method tells them apart: the two answers of a pair, the rollouts of a prompt.

    Attributes:
        of_target: which of them each target belongs to, ``0 <= sequence < S``.
        values: numbers that come with them, each ``[S]``, by name: a margin, a reward, a reference's log-probability.
        num: how many there are, S.
    """

    of_target: Int[Tensor, " M"]
    values: Mapping[str, Float[Tensor, " S"]]
    num: int

    @staticmethod
    def join(parts: Sequence[Sequences]) -> Sequences:
        """Those of several batches; all have the same values."""
        starts = torch.tensor([0, *(part.num for part in parts)]).cumsum(0).tolist()
        of_target = [part.of_target + start for part, start in zip(parts, starts, strict=False)]
        values = {name: torch.cat([part.values[name] for part in parts]) for name in parts[0].values}
        return Sequences(torch.cat(of_target), values, starts[-1])

    def sums(self, of_targets: Float[Tensor, " M"]) -> Float[Tensor, " S"]:
        """Each sequence's sum over its targets; 0 for one that has none."""
        return of_targets.new_zeros(self.num).index_add(0, self.of_target, of_targets)

    def to(self, device: torch.device | str) -> Sequences:
        """The same on another device."""
        return Sequences(self.of_target.to(device), {n: v.to(device) for n, v in self.values.items()}, self.num)


@dataclass(frozen=True, eq=False)
class Batch:
    """A forest and what it is to predict.

    The smallest one is a *group*: what must be seen together (a document, a pair, the rollouts of a prompt). A
    *pack* is several groups joined.

    Attributes:
        packed: the forest.
        targets: its targets.
        num_samples: how many samples it holds.
        num_bytes: how many bytes of text its targets stand for; 0 where that means nothing.
        origin: where each group comes from ("file:line").
        sequences: which targets belong together, where the method asks; None elsewhere, and in an empty pack.
        beside: what `Method.estimates` is asked about, where that is another forest than the one that is learned.
        estimates: what `Method.estimates` came to over the whole update, each divided by its count.
    """

    packed: Packed
    targets: Targets
    num_samples: int = 1
    num_bytes: float = 0.0
    origin: tuple[str, ...] = ()
    sequences: Sequences | None = None
    beside: Batch | None = None
    estimates: Mapping[str, float] = field(default_factory=dict)

    @staticmethod
    def join(groups: Sequence[Batch]) -> Batch:
        """Several groups as one pack; none at all make an empty one."""
        starts = torch.tensor([0, *(len(g.packed) for g in groups)]).cumsum(0).tolist()
        told_apart = [g.sequences for g in groups if g.sequences is not None]
        beside = [g.beside for g in groups if g.beside is not None]
        return Batch(
            Packed.join([g.packed for g in groups]),
            Targets.join([g.targets for g in groups], starts[:-1]),
            sum(g.num_samples for g in groups),
            sum(g.num_bytes for g in groups),
            tuple(place for g in groups for place in g.origin),
            Sequences.join(told_apart) if told_apart else None,
            Batch.join(beside) if beside else None,
        )

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def sample_ids(self) -> list[int]:
        """Which samples it holds, in order."""
        return list(dict.fromkeys(self.packed.sample.tolist()))

    @property
    def weights(self) -> Tensor:
        """How much each target counts, ``[M]``."""
        return self.targets.weights

    def keyed(self, key: int) -> Batch:
        """The same with a random key for every row, of an update's key."""
        packed = self.packed
        keys = token_keys(key, packed.sample[packed.segment_of_row], packed.offsets.cpu())
        beside = None if self.beside is None else self.beside.keyed(key)
        return replace(self, packed=replace(packed, keys=keys.to(packed.tokens.device), key=key), beside=beside)

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device."""
        return replace(
            self,
            packed=self.packed.to(device),
            targets=self.targets.to(device),
            sequences=None if self.sequences is None else self.sequences.to(device),
            beside=None if self.beside is None else self.beside.to(device),
        )
