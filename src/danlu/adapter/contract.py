"""What an adapter is: its fields, and itself in a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeAlias

import torch
from jaxtyping import Int
from pydantic import field_validator
from torch import Tensor, nn

from danlu.adapter.targets import matching, named_modules
from danlu.config import Config
from danlu.contracts import Memory, SequenceModel
from danlu.errors import CheckpointError, RecipeError, UnsupportedError
from danlu.packed import Packed
from danlu.parts.quantized import is_quantized
from danlu.random import fold
from danlu.sight import Extra

DEFAULT = "default"
"""The name of a model's only adapter."""
Rows: TypeAlias = "tuple[int, int] | Tensor"
"""A run ``start:stop`` of rows, or their numbers (int64)."""


@dataclass(frozen=True)
class Entry:
    """A pass as it enters a model.

    Attributes:
        packed: its rows.
        readouts: what is asked about them.
        memory: what is beside them.
        extra: keys and values of no token, that some of the rows see.
        soft: by adapter, the rows whose input embedding it gives.
    """

    packed: Packed
    readouts: Sequence[Any]
    memory: Memory | None = None
    extra: tuple[Extra, ...] = ()
    soft: Mapping[str, Int[Tensor, " S"]] = field(default_factory=dict)


class Adapter(Config, ABC):
    """How a model is tuned by few parameters; its fields are what a recipe may say of it.

    Class attributes:
        peft_type: what `peft` calls it; None where it has no such kind.
        beside: whether what is trained stands beside the model's own weights and is saved by itself.
    """

    peft_type: ClassVar[str | None] = None
    beside: ClassVar[bool] = True

    also_train: tuple[str, ...] = ()
    """Modules of the model that are trained whole too, by pattern (`score`, `*norm`), and saved with the adapter."""

    @field_validator("also_train", "targets", mode="before", check_fields=False)
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    def encoded(self, encode: Callable[[str], Iterable[int]]) -> Self:
        """The same with what it says as text given as tokens; asked for before it is attached."""
        return self

    @abstractmethod
    def attach(self, model: SequenceModel, *, name: str = DEFAULT, seed: int = 0) -> Attached:
        """Freeze a model and put this into it.

        Args:
            model: whole, on the host, its weights set.
            name: what this one is called among the model's adapters.
            seed: what its first values follow from.

        Raises:
            RecipeError: when a pattern matches nothing, or a size does not fit.
        """

    @classmethod
    def from_hub(cls, config: Mapping[str, Any]) -> Self:
        """The fields from an `adapter_config.json` of `peft`.

        Raises:
            UnsupportedError: when the file asks for something that would be computed differently here.
        """
        raise UnsupportedError(f"adapters of type {cls.peft_type} are not read")


class Attached(ABC):
    """An adapter in a model.

    Args:
        adapter: what it is.
        model: what it is in, which it freezes but for what is named in `also_train`.
        name: what it is called among the model's adapters.
        seed: what its first values follow from.

    Class attributes:
        adds_rows: whether it puts rows of its own into a pack.
    """

    adds_rows: ClassVar[bool] = False

    def __init__(self, adapter: Adapter, model: SequenceModel, name: str, seed: int) -> None:
        self.adapter, self.model, self.name, self._seed = adapter, model, name, seed
        model.requires_grad_(False)
        self.also = matching(adapter.also_train, named_modules(model), "also_train") if adapter.also_train else []
        for module in self.also:
            if is_quantized(model.get_submodule(module)):
                what = f"'{module}' is quantised, and cannot be trained whole"
                raise RecipeError(what, where="adapter.also_train", do="Leave it out, or model.quantize.")
            model.get_submodule(module).requires_grad_(True)

    @property
    @abstractmethod
    def own(self) -> Mapping[str, str]:
        """Each of its parameters by its name in the model: its name in `peft`'s files."""

    @abstractmethod
    def to_hub(self) -> dict[str, Any]:
        """The fields of an `adapter_config.json` that are of its kind."""

    @property
    def ahead(self) -> int:
        """How many positions it takes before a sequence's first token."""
        return 0

    def enter(self, entry: Entry, rows: Rows | None) -> Entry:
        """A pass as it enters the model when this acts on some of its rows; asked where `ahead` is not 0.

        Args:
            entry: the pass.
            rows: which rows; None is all of them.
        """
        return entry

    def merge(self) -> None:
        """Put what it does into the model's own weights, and take it out.

        Raises:
            UnsupportedError: when no weights compute that.
        """
        raise UnsupportedError(f"an adapter of kind {type(self.adapter).__name__} cannot be merged into the weights")

    def tensors(self, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """What its file holds, by `peft`'s names.

        Args:
            weights: the parameters by name, where the model itself does not hold all of them.
        """
        held = dict(self.model.named_parameters()) if weights is None else weights
        return taken(held, {**self.own, **self.also_named})

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take its parameters from a file's.

        Raises:
            CheckpointError: when one is missing, superfluous or misshapen.
        """
        named = {**self.own, **self.also_named}
        strangers = sorted(set(tensors) - set(named.values()))
        missing = sorted(set(named.values()) - set(tensors))
        if strangers or missing:
            what = f"'{(missing or strangers)[0]}' {'is missing' if missing else 'has no place in this model'}"
            raise CheckpointError(f"{len(missing) or len(strangers)} tensors do not fit: {what}")
        parameters = dict(self.model.named_parameters())
        for ours, theirs in named.items():
            parameter, tensor = parameters[ours], tensors[theirs]
            if parameter.shape != tensor.shape:
                shapes = f"{tuple(tensor.shape)}, the model asks for {tuple(parameter.shape)}"
                raise CheckpointError(f"'{theirs}' is of shape {shapes}", do="Give the base that it was trained on.")
            parameter.copy_(tensor)

    def generator(self, name: str) -> torch.Generator:
        """What the first values of a parameter are drawn from: they follow from the seed and its name alone."""
        return torch.Generator().manual_seed(fold(self._seed, name) % 2**63)

    @property
    def also_names(self) -> list[str]:
        """What the hub calls the modules that are trained whole."""
        hub = named_modules(self.model)
        return [hub[module] for module in self.also]

    @property
    def also_named(self) -> dict[str, str]:
        """Each of these modules' parameters by its name in the model: its name in `peft`'s files."""
        hub = self.model.hub_names()
        inside = [f"{module}.{name}" for module in self.also for name in _parameters(self.model, module)]
        return {name: f"{PEFT_ROOT}.{hub[name]}" for name in inside}


def part_name(kind: str, name: str) -> str:
    """What an adapter's part of a module is called there; a module's name may have no dot in it.

    Example:
        >>> part_name("lora", "default"), part_name("lora", "v1.0")
        ('lora', 'lora_v1%2E0')
    """
    return kind if name == DEFAULT else f"{kind}_{name.replace('%', '%25').replace('.', '%2E')}"


def taken(held: Mapping[str, Tensor], named: Mapping[str, str]) -> dict[str, Tensor]:
    """Some parameters as a file holds them.

    Args:
        held: parameters by name.
        named: the names of some: what the file calls them.
    """
    return {theirs: held[ours].detach().to("cpu").contiguous() for ours, theirs in named.items()}


def _parameters(model: nn.Module, module: str) -> list[str]:
    return [name for name, _ in model.get_submodule(module).named_parameters()]


PEFT_ROOT = "base_model.model"
"""What stands in front of every name in `peft`'s files."""
