"""The few types everything meets through."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from danlu.batch import Batch
from danlu.config import Config
from danlu.packed import Packed
from danlu.sight import Extra, Sight


class Memory(Protocol):
    """Keys and values beside those of a pass's own rows: kept from passes before it, or held by other ranks."""

    def sight(self, packed: Packed) -> Sight:
        """Who sees whom when these rows attend to themselves and to all that is here."""
        ...

    def backend(self, layer: int) -> Callable[..., Tensor]:
        """How a layer's rows attend to all that: a `danlu.parts.attention.Backend`, given their own keys and values."""
        ...

    def with_extra(self, extra: Sequence[Extra]) -> Memory:
        """The same for one pass whose rows see these keys too; asked for before its sight."""
        ...


class SequenceModel(nn.Module, ABC):
    """A network over packed sequences.

    Attributes:
        config: the fields it was built from.
        compute_dtype: the precision of activations and products; parameters keep their own.
        notes: what one who trains it should know, a sentence each.
        adapted: the adapters it wears; None where it has none.
    """

    config: ArchitectureConfig
    compute_dtype: torch.dtype = torch.float32
    notes: tuple[str, ...] = ()
    adapted: Adapted | None = None

    @abstractmethod
    def forward(self, packed: Packed, readouts: Sequence[Any], memory: Memory | None = None) -> tuple[Any, ...]:
        """Each readout's answer, in order."""

    @property
    def embedding(self) -> nn.Embedding:
        """The embedding of its tokens."""
        tables = (module for module in self.modules() if isinstance(module, nn.Embedding))
        return next(table for table in tables if table.num_embeddings == self.config.vocabulary)

    @property
    def longest(self) -> int | None:
        """The longest sequence it can position, what its adapters take up left out, or None."""
        own = self.config.longest
        return own if own is None or self.adapted is None else own - self.adapted.ahead

    @property
    @abstractmethod
    def blocks(self) -> Iterable[nn.Module]:
        """The repeated parts: what is compiled, sharded and recomputed as one."""

    @abstractmethod
    def flops(self, packed: Packed, num_targets: int) -> int:
        """Matrix-product operations of a forward pass, attention's visible part included; a multiply-add is two."""

    def hub_names(self) -> Mapping[str, str]:
        """For each of its own parameters, an adapter's left out, its name in hub files."""
        return self.config.hub_names()

    def hub_transposed(self) -> frozenset[str]:
        """Those of its own parameters that hub files hold transposed."""
        return self.config.hub_transposed()


class Adapted(Protocol):
    """The adapters that a model wears."""

    @property
    def ahead(self) -> int:
        """The most positions that one of them takes before a sequence's first token."""
        ...

    @property
    def adds_rows(self) -> bool:
        """Whether one of them puts rows of its own into a pack."""
        ...

    def off(self) -> AbstractContextManager[None]:
        """Within, the model computes what it did without them; for passes without a gradient."""
        ...


class ArchitectureConfig(Config, ABC):
    """The fields of an architecture: how the parts are wired.

    Class attributes:
        model_type: what the hub calls it.
    """

    model_type: ClassVar[str]

    @abstractmethod
    def build(self) -> SequenceModel:
        """The network, its weights not yet set."""

    @abstractmethod
    def initialize(self, model: nn.Module, seed: int) -> None:
        """Set the weights as one does before training from nothing."""

    @classmethod
    @abstractmethod
    def from_hub(cls, config: Mapping[str, Any]) -> ArchitectureConfig:
        """The fields from a hub `config.json`.

        Raises:
            UnsupportedError: when the file asks for something this implementation would compute differently.
        """

    @abstractmethod
    def to_hub(self) -> dict[str, Any]:
        """A hub `config.json`."""

    @abstractmethod
    def hub_names(self) -> Mapping[str, str]:
        """For each of our parameters, its name in hub files."""

    def hub_transposed(self) -> frozenset[str]:
        """Those of our parameters that hub files hold transposed."""
        return frozenset()

    @property
    @abstractmethod
    def vocabulary(self) -> int:
        """How many tokens there are."""

    @property
    def longest(self) -> int | None:
        """The longest sequence it can position, or None."""
        return None

    @property
    def scores(self) -> bool:
        """Whether its head gives one score a row (`danlu.parts.readout.Values`) instead of logits over tokens."""
        return False

    @property
    def memory_shape(self) -> tuple[int, int, int]:
        """(layers, key heads, head width) of the keys it would have kept.

        Raises:
            NotImplementedError: where it keeps none.
        """
        raise NotImplementedError

    @property
    def memory_alike(self) -> bool:
        """Whether that is the shape of every layer's keys, and of its values."""
        return True


Terms: TypeAlias = dict[str, Tensor]
"""Sums by name; each is divided once, by its count over the whole update."""


@dataclass(frozen=True)
class Outcome:
    """What a method makes of one pack.

    Attributes:
        losses: the terms to be minimised, as sums with a gradient; each divided by the count of its name.
        metrics: sums to be recorded, by name; each divided by the count of its name.
    """

    losses: Terms
    metrics: Terms


Way: TypeAlias = Literal["auto", "model", "precomputed"]
"""How a model that is only asked is had: beside the one that is trained; or what it would say is computed beforehand.

`auto` is the trained model itself with its adapter switched off, where it has one, else a model beside it.
"""


class Method(Config, ABC):
    """How a model learns; its fields are what a recipe may say of it.

    Class attributes:
        learns_from: what it takes: "sequence" (`Sample`), "answers" (`Answers`), "rows" (of an array), or "experience"
            (what comes of acting).
        goal: what for, in a word or two, as a catalogue has it ("language modelling", "control").
        mechanism: how, in two or three words ("maximum likelihood", "temporal difference").
        level: what it keeps what it learned in: "table", "features" or "network".
    """

    learns_from: ClassVar[Literal["sequence", "answers", "rows", "experience"]] = "sequence"
    goal: ClassVar[str] = ""
    mechanism: ClassVar[str] = ""
    level: ClassVar[str] = "network"


class LossMethod(Method, ABC):
    """How a model learns that is moved by the gradient of a loss, given as sums over packs of groups.

    A pack is a `Batch` of sequences, or `Rows` of an array: it has a length, and knows `num_samples`, `origin`,
    `sample_ids`, `weights`, `estimates`, `to` and `keyed`.

    Class attributes:
        roles: the models it may need, by name; the first is trained, the others are only asked.
        estimating: whether `estimates` is to be asked before each update.
        by_sequence: whether its loss bends what whole sequences come to (a ratio, a preference), which ranks that share
            a pack's rows then are given in full; it asks for values (`LogProbs`, `Values`) and never for sums.
    """

    roles: ClassVar[tuple[str, ...]] = ("policy",)
    estimating: ClassVar[bool] = False
    by_sequence: ClassVar[bool] = False

    @property
    def asks(self) -> Mapping[str, Way]:
        """The roles that it asks beside the one it trains, as its fields are, and how each is had."""
        return dict.fromkeys(self.roles[1:], "auto")

    def matched(self, samples: Sequence[Any]) -> Sequence[Any]:
        """The samples of an update as they are to be grouped; a method that compares samples brings them together here.

        It is asked with all of an update's samples on every rank, before they are dealt out.
        """
        return samples

    @abstractmethod
    def group(self, sample: Any) -> Any:
        """A sample as the smallest pack: what must be seen together."""

    @abstractmethod
    def join(self, groups: Sequence[Any]) -> Any:
        """Several groups as one pack; none at all make an empty one."""

    def size(self, sample: Any) -> int:
        """About how long its group is; what samples are dealt out to ranks by."""
        return len(self.group(sample))

    def flops(self, model: Any, batch: Any) -> float:
        """Matrix-product operations of asking a model about a pack once; 0 where nobody counts them."""
        return 0.0

    @abstractmethod
    def counts(self, batch: Any) -> dict[str, float]:
        """What each term is divided by, from data alone; summed over all packs and ranks of an update."""

    def estimates(self, models: Mapping[str, Any], batch: Any) -> Terms:
        """Sums, without gradients, that the loss depends on as a whole: taken over all packs and ranks before it.

        What they come to, each divided by the count of its name, is in `estimates` of the pack when the loss is asked.
        The model computes as it will for the loss: in training, with the same random keys.
        """
        return {}

    @abstractmethod
    def loss(self, models: Mapping[str, Any], batch: Any) -> Outcome:
        """The terms' sums over one pack."""

    @abstractmethod
    def summarize(self, averages: Mapping[str, float]) -> dict[str, float]:
        """The loss and metrics as a person reads them, from each one's sum over its count."""


class SequenceMethod(LossMethod, ABC):
    """How a model of sequences learns.

    Class attributes:
        scoring: whether what it trains has a head that gives scores, and none over tokens.
    """

    learns_from: ClassVar[Literal["sequence", "answers"]] = "sequence"
    scoring: ClassVar[bool] = False

    @abstractmethod
    def group(self, sample: Any) -> Batch:
        """A sample as the smallest batch: its segments and targets."""

    def join(self, groups: Sequence[Batch]) -> Batch:
        """See `LossMethod`."""
        return Batch.join(groups)

    def flops(self, model: SequenceModel, batch: Batch) -> float:
        """See `LossMethod`."""
        return model.flops(batch.packed, len(batch.targets))


class Source(Protocol):
    """Where samples come from; its state says what has been consumed, not what was read ahead."""

    def draw(self) -> Sequence[Any]:
        """The samples of the next update; none when there are no more."""
        ...

    @property
    def exhausted(self) -> bool:
        """Whether there are no more samples."""
        ...

    @property
    def epochs(self) -> float:
        """Passes over the data so far, the unfinished one by its share."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, as JSON."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        ...
