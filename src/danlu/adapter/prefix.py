"""Prefix-Tuning: learned keys and values in front of every sequence, in every layer.

    o_t = attention(q_t, [P_K; K], [P_V; V]),    P_K, P_V: [l, G, K] of each layer

Every row sees them, and they are not rotated. A sequence's first token stands at position l; to a window they are the
l tokens before it, unless `beyond_windows` exempts them. While training they are what a small network makes of l
learned vectors, which trains more steadily:

    P = W_2 tanh(W_1 E + b_1) + b_2,    E: [l, G K],    P: [l, 2 L G K]

Of that only P is saved; what is saved is trained on as it is.

References:
    Li and Liang, 2021, "Prefix-Tuning: optimizing continuous prompts for generation",
    https://arxiv.org/abs/2101.00190
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, Self

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.adapter.adapted import Adapters
from danlu.adapter.contract import DEFAULT, Adapter, Attached, Entry, Rows, taken
from danlu.contracts import SequenceModel
from danlu.errors import CheckpointError, RecipeError, UnsupportedError
from danlu.packed import Packed
from danlu.random import place_key
from danlu.registry import export
from danlu.sight import ANYWHERE, Extra

SAVED = "prompt_embeddings"
"""What `peft` calls the one tensor in files of this kind, and of prompt tuning's."""
_BEYOND_WINDOWS = "danlu_beyond_windows"
_WHERE = "adapter_config.json"


@export("adapter", "prefix", source="Li and Liang, 2021, https://arxiv.org/abs/2101.00190")
class PrefixTuning(Adapter):
    """Learned keys and values in front of every sequence, in every layer."""

    peft_type: ClassVar[str] = "PREFIX_TUNING"

    length: int = Field(10, ge=1)
    """l, how many there are in each layer."""
    reparameterize: bool = True
    """Train a network that makes them, of which only what it makes is saved; else train them as they are."""
    hidden: int = Field(512, ge=1)
    """Inner width of that network."""
    beyond_windows: bool = False
    """Whether layers with a window see all of it from everywhere; else windows hide it like tokens, as in `peft`."""

    def attach(self, model: SequenceModel, *, name: str = DEFAULT, seed: int = 0) -> Prefix:
        """See `Adapter`."""
        return Prefix(self, model, name, seed)

    @classmethod
    def from_hub(cls, config: Mapping[str, Any]) -> Self:
        """See `Adapter`; what the file holds is trained on as it is."""
        if config.get("num_transformer_submodules") not in (None, 1):
            raise UnsupportedError("the prefix is for an encoder and a decoder", where=_WHERE)
        return cls(
            length=config["num_virtual_tokens"],
            reparameterize=False,
            beyond_windows=bool(config.get(_BEYOND_WINDOWS)),
            also_train=tuple(config.get("modules_to_save") or ()),
        )


class Shape(NamedTuple):
    """Of the keys and values of a model: layers, key heads, and the width of a head."""

    layers: int
    heads: int
    width: int

    @staticmethod
    def of(model: SequenceModel) -> Shape:
        """That of a model.

        Raises:
            UnsupportedError: when its layers keep no keys, or not all the same.
        """
        config, do = model.config, "Use adapter=lora."
        try:
            shape = Shape(*config.memory_shape)
        except NotImplementedError as error:
            what = f"the layers of '{config.model_type}' keep no keys that a prefix could be put before"
            raise UnsupportedError(what, where="adapter", do=do) from error
        if not config.memory_alike:
            what = f"keys and values of '{config.model_type}' are not of one shape in all layers"
            raise UnsupportedError(what, where="adapter", do=do)
        return shape


class LearnedKeys(nn.Module):
    """The prefix of a model as it is trained.

    Args:
        length: l.
        shape: of the model's keys.
        hidden: inner width of the network that makes it, or None where it is itself what is learned.
        name: what its adapter is called.
    """

    keys: Tensor

    def __init__(self, length: int, shape: Shape, hidden: int | None, name: str) -> None:
        super().__init__()
        self.shape = shape
        inputs, outputs = shape.heads * shape.width, 2 * shape.layers * shape.heads * shape.width
        sizes = {"weight": (length, outputs)} if hidden is None else _network(length, inputs, hidden, outputs)
        for part, size in sizes.items():
            self.register_parameter(part, nn.Parameter(torch.empty(size)))
        keys = torch.tensor([place_key(f"{name}.{row}") for row in range(length)], dtype=torch.int32)
        self.register_buffer("keys", keys, persistent=False)

    def initialize(self, generators: Mapping[str, torch.Generator]) -> None:
        """Set the first values, as `peft` does: normal, and what torch begins a linear layer with."""
        for part, parameter in self.named_parameters():
            if part in ("weight", "embedding"):
                nn.init.normal_(parameter, generator=generators[part])
            else:
                bound = self.get_parameter(f"W{part[1:]}").shape[1] ** -0.5
                nn.init.uniform_(parameter, -bound, bound, generator=generators[part])

    def flat(self) -> Float[Tensor, "l F"]:
        """The prefix as files have it: for each row, layers, keys before values, heads, widths."""
        return _flat(dict(self.named_parameters()))

    def values(self, dtype: torch.dtype) -> Float[Tensor, "L 2 l G K"]:
        """The prefix as layers attend to it."""
        layers, heads, width = self.shape
        by_row = self.flat().view(-1, layers, 2, heads, width)
        return by_row.permute(1, 2, 0, 3, 4).to(dtype).contiguous()


class Prefix(Attached):
    """A prefix in a model; its parameters are the model's own, no block's, since all blocks see it at once."""

    adapter: PrefixTuning

    def __init__(self, adapter: PrefixTuning, model: SequenceModel, name: str, seed: int) -> None:
        super().__init__(adapter, model, name, seed)
        check_room(model, adapter.length)
        self.part = "prefix" if name == DEFAULT else f"prefix_{name}"
        hidden = adapter.hidden if adapter.reparameterize else None
        self.learned = LearnedKeys(adapter.length, Shape.of(model), hidden, name)
        model.add_module(self.part, self.learned)
        self.learned.initialize({part: self.generator(f"{self.part}.{part}") for part in self._parts})
        Adapters.of(model).attached[name] = self

    @property
    def _parts(self) -> list[str]:
        return [part for part, _ in self.learned.named_parameters()]

    @property
    def ahead(self) -> int:
        """See `Attached`."""
        return self.adapter.length

    def enter(self, entry: Entry, rows: Rows | None) -> Entry:
        """See `Attached`: its rows see the prefix, and stand behind it."""
        dtype, length = self.model.compute_dtype, self.adapter.length
        extra = Extra(
            self.name,
            torch.full((length,), ANYWHERE) if self.adapter.beyond_windows else torch.arange(-length, 0),
            list(runs(rows, len(entry.packed))),
            self.learned.keys,
            lambda: self.learned.values(dtype),
        )
        packed = replace(entry.packed, positions=behind(entry.packed, rows, length))
        return replace(entry, packed=packed, extra=(*entry.extra, extra))

    @property
    def own(self) -> Mapping[str, str]:
        """See `Attached`."""
        theirs = {"weight": SAVED}
        return {f"{self.part}.{part}": theirs.get(part, f"prompt_encoder.{part}") for part in self._parts}

    def to_hub(self) -> dict[str, Any]:
        """See `Attached`; the network is no part of a file."""
        layers, heads, width = self.learned.shape
        return {
            "num_virtual_tokens": self.adapter.length,
            "token_dim": heads * width,
            "num_attention_heads": heads,
            "num_layers": layers,
            "num_transformer_submodules": 1,
            "encoder_hidden_size": self.adapter.hidden,
            "prefix_projection": False,
            **({_BEYOND_WINDOWS: True} if self.adapter.beyond_windows else {}),  # of which `peft` warns, as it should
        }

    @torch.no_grad()
    def tensors(self, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """See `Attached`: what the network makes, in its place."""
        held = dict(self.model.named_parameters()) if weights is None else weights
        prefix = _flat({part: held[f"{self.part}.{part}"].to("cpu") for part in self._parts})
        return {SAVED: prefix.detach().contiguous(), **taken(held, self.also_named)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Attached`.

        Raises:
            CheckpointError: also when there is a network, which cannot be had from what it made.
        """
        if self.adapter.reparameterize:
            raise CheckpointError("a prefix that a network makes cannot be read from a file", do="Train it directly.")
        super().load(tensors)


def check_room(model: SequenceModel, length: int) -> None:
    """See that a model with so many positions fewer still has one.

    Raises:
        RecipeError: when it has not.
    """
    longest = model.longest
    if longest is not None and length >= longest:
        what = f"{length} positions in front of a sequence leave none of the model's {longest}"
        raise RecipeError(what, where="adapter.length", do="Lower it.")


def runs(rows: Rows | None, num_rows: int) -> Iterator[tuple[int, int]]:
    """Rows as runs ``start:stop``."""
    if not isinstance(rows, Tensor):
        yield rows or (0, num_rows)
        return
    ends = (rows.diff() != 1).nonzero().squeeze(1) + 1
    for run in rows.tensor_split(ends):
        yield int(run[0]), int(run[-1]) + 1


def behind(packed: Packed, rows: Rows | None, length: int) -> Int[Tensor, "T ..."]:
    """The positions when some rows stand so many further back."""
    if rows is None:
        return packed.positions + length
    chosen = slice(*rows) if isinstance(rows, tuple) else rows.to(packed.positions.device)
    positions = packed.positions.clone()
    positions[chosen] += length
    return positions


def _network(length: int, inputs: int, hidden: int, outputs: int) -> dict[str, Sequence[int]]:
    """The parameters of the network, by name: their shapes."""
    return {
        "embedding": (length, inputs),
        "W1": (hidden, inputs),
        "b1": (hidden,),
        "W2": (outputs, hidden),
        "b2": (outputs,),
    }


def _flat(parts: Mapping[str, Tensor]) -> Float[Tensor, "l F"]:
    if "weight" in parts:
        return parts["weight"]
    inner = F.linear(parts["embedding"], parts["W1"], parts["b1"]).tanh()
    return F.linear(inner, parts["W2"], parts["b2"])
