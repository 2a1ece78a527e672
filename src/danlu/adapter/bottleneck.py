"""Adapter tuning: a narrow two-layer network behind each half of a block.

    h + W_2 f(W_1 h + b_1) + b_2,    W_1: [m, D], W_2: [D, m],    h: what attention, or the feed-forward, gives

It acts on a half-block's output before that is added to the stream. Weights start as normal numbers of standard
deviation 1e-3, cut off at two of them, and biases as 0, so the model starts nearly as it was. The paper trains the
layer norms beside it: `also_train="*norm*"` (GPT-2: `"ln_*"`).

References:
    Houlsby et al., 2019, "Parameter-efficient transfer learning for NLP", https://arxiv.org/abs/1902.00751
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self, TypeAlias

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.adapter.adapted import Adapters
from danlu.adapter.contract import DEFAULT, PEFT_ROOT, Adapter, Attached, part_name
from danlu.adapter.targets import block_names, named_modules
from danlu.contracts import SequenceModel
from danlu.errors import UnsupportedError
from danlu.parts.linear import Linear
from danlu.parts.quantized import is_quantized
from danlu.registry import export

Activation: TypeAlias = Literal["gelu", "relu", "silu", "tanh"]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
_STD = 1e-3
"""Of the first weights."""


@export("adapter", "bottleneck", source="Houlsby et al., 2019, https://arxiv.org/abs/1902.00751")
class Bottleneck(Adapter):
    """A narrow two-layer network behind attention and behind the feed-forward of each block."""

    peft_type: ClassVar[str] = "BOTTLENECK"

    size: int = Field(64, ge=1)
    """m, the width of the narrow layer."""
    after: Literal["both", "attention", "feedforward"] = "both"
    """Which halves of a block it stands behind."""
    activation: Activation = "gelu"
    """f."""
    layers: tuple[int, ...] | None = None
    """The blocks it acts on, counted from 0, below 0 from the end; all by default."""

    def attach(self, model: SequenceModel, *, name: str = DEFAULT, seed: int = 0) -> Bottlenecks:
        """See `Adapter`."""
        return Bottlenecks(self, model, name, seed)

    @classmethod
    def from_hub(cls, config: Mapping[str, Any]) -> Self:
        """See `Adapter`; the format is our own, since `peft` has no such kind."""
        layers = config["layers"]
        return cls(
            size=config["size"],
            after=config["after"],
            activation=config["activation"],
            layers=None if layers is None else tuple(layers),
            also_train=tuple(config.get("modules_to_save") or ()),
        )


class Narrow(nn.Module):
    """What stands behind one half of a block.

    Args:
        width: D.
        size: m.
        activation: f.
        adapters: where it looks up which rows it acts on.
        name: what its adapter is called there.
    """

    def __init__(self, width: int, size: int, activation: Activation, *, adapters: Adapters, name: str) -> None:
        super().__init__()
        self.down, self.up = Linear(width, size, bias=True), Linear(size, width, bias=True)
        self._activation, self._adapters, self._name = _ACTIVATIONS[activation], adapters, name

    def forward(self, h: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """What it adds."""
        return self.up(self._activation(self.down(h)))

    def behind(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        """The half-block's result, a tensor or first of several, with its own added; None where it does not act."""
        acting = self._adapters.acting
        if self._name not in acting:
            return None
        h: Tensor = output[0] if isinstance(output, tuple) else output
        rows, wide = acting[self._name], h.flatten(0, -2)
        if rows is None:
            changed = wide + self(wide)
        else:
            chosen: Tensor | slice = slice(*rows) if isinstance(rows, tuple) else rows
            changed = wide.clone()
            changed[chosen] = wide[chosen] + self(wide[chosen])
        changed = changed.view(h.shape)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed


class Bottlenecks(Attached):
    """Bottlenecks in a model."""

    adapter: Bottleneck

    def __init__(self, adapter: Bottleneck, model: SequenceModel, name: str, seed: int) -> None:
        super().__init__(adapter, model, name, seed)
        adapters = Adapters.of(model)
        self.part = part_name("bottleneck", name)
        self.halves: list[str] = []
        for block in block_names(model, adapter.layers):
            self.halves += _halves(model, block, adapter.after)
        for half in self.halves:
            module, width = model.get_submodule(half), _width(model, half.rpartition(".")[0])
            narrow = Narrow(width, adapter.size, adapter.activation, adapters=adapters, name=name)
            for parameter_name, parameter in narrow.named_parameters():
                if parameter.dim() == 1:
                    nn.init.zeros_(parameter)
                else:
                    generator = self.generator(f"{half}.{self.part}.{parameter_name}")
                    nn.init.trunc_normal_(parameter, std=_STD, a=-2 * _STD, b=2 * _STD, generator=generator)
            module.add_module(self.part, narrow)
            module.register_forward_hook(narrow.behind)
        adapters.attached[name] = self

    @property
    def own(self) -> Mapping[str, str]:
        """See `Attached`; names as `peft` would have them."""
        hub = named_modules(self.model)
        return {
            f"{half}.{self.part}.{parameter}": f"{PEFT_ROOT}.{hub[half]}.bottleneck.{parameter}"
            for half in self.halves
            for parameter in ("down.weight", "down.bias", "up.weight", "up.bias")
        }

    def to_hub(self) -> dict[str, Any]:
        """See `Attached`."""
        adapter = self.adapter
        return {
            "size": adapter.size,
            "after": adapter.after,
            "activation": adapter.activation,
            "layers": None if adapter.layers is None else list(adapter.layers),
        }


def _halves(model: SequenceModel, block: str, after: str) -> list[str]:
    """The modules of a block behind which it stands.

    A block's own modules that hold matrices are attention, by its name, and what the feed-forward is made of, of which
    the last gives its result.

    Raises:
        UnsupportedError: when the block is none of attention and a feed-forward.
    """
    holding = [
        name
        for name, module in model.get_submodule(block).named_children()
        if any(parameter.dim() >= 2 for parameter in module.parameters()) or is_quantized(module)
    ]
    attention = [name for name in holding if "att" in name.lower()]
    feedforward = [name for name in holding if name not in attention]
    if len(attention) != 1 or not feedforward:
        found = ", ".join(holding) or "nothing"
        what = f"'{block}' is not attention and a feed-forward but {found}"
        raise UnsupportedError(what, where="adapter.after", do="Use adapter=lora.")
    chosen = {"both": [attention[0], feedforward[-1]], "attention": attention, "feedforward": feedforward[-1:]}[after]
    return [f"{block}.{name}" for name in chosen]


def _width(model: SequenceModel, block: str) -> int:
    """That of the stream through a block, which its norms have too; an embedding may be narrower."""
    for module in model.get_submodule(block).children():
        sizes = [parameter.shape for parameter in module.parameters()]
        if sizes and all(len(size) == 1 for size in sizes):
            return sizes[0][0]
    return model.embedding.embedding_dim
