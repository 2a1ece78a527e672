"""Modules by pattern: what an adapter acts on.

A pattern is a module's name or the end of one, with ``*`` for any part of it; names are those of the model here or of
the hub. ``q_proj`` is every layer's, ``layers.0.*`` all of one layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from danlu.contracts import SequenceModel
from danlu.errors import RecipeError, did_you_mean
from danlu.parts.linear import Linear
from danlu.parts.quantized import Quantized

ALL_LINEAR = "all-linear"
"""Every linear layer of the blocks."""


def is_linear(module: nn.Module) -> bool:
    """Whether it multiplies by a matrix, ours or another library's; GPT-2's in `transformers` holds it transposed."""
    return isinstance(module, Linear | nn.Linear | Quantized) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Whether it is the linear layer of `transformers` whose weight is ``[inputs, outputs]``."""
    return any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)


def named_modules(model: SequenceModel) -> dict[str, str]:
    """Every module with parameters of its own by name: what the hub calls it."""
    hub = model.hub_names()
    owners = {name.rpartition(".")[0]: theirs.rpartition(".")[0] for name, theirs in hub.items()}
    inner = {
        ".".join(parts[:depth]): ".".join(theirs.split(".")[: len(theirs.split(".")) - len(parts) + depth])
        for name, theirs in owners.items()
        for parts in [name.split(".")]
        for depth in range(1, len(parts))
    }
    return {**inner, **owners}


def block_names(model: SequenceModel, layers: Sequence[int] | None = None) -> list[str]:
    """The names of the blocks, or of some.

    Args:
        model: the model.
        layers: the blocks that are meant, counted from 0 and, below 0, from the end; all by default.

    Raises:
        RecipeError: when there is no such block.
    """
    names = {id(module): name for name, module in model.named_modules()}
    blocks = [names[id(block)] for block in model.blocks]
    for layer in layers or ():
        if not -len(blocks) <= layer < len(blocks):
            raise RecipeError(f"there is no layer {layer}", where="adapter.layers", do=f"There are {len(blocks)}.")
    return blocks if layers is None else [blocks[layer] for layer in layers]


def linears(model: SequenceModel, layers: Sequence[int] | None = None) -> dict[str, str]:
    """Every linear layer of the blocks by name: what the hub calls it.

    Args:
        model: the model.
        layers: the blocks that are meant, counted from 0 and, below 0, from the end; all by default.

    Raises:
        RecipeError: when there is no such block.
    """
    hub = model.hub_names()
    found: dict[str, str] = {}
    for block in block_names(model, layers):
        for within, module in model.get_submodule(block).named_modules():
            name = f"{block}.{within}"
            if is_linear(module) and f"{name}.weight" in hub:
                found[name] = hub[f"{name}.weight"].removesuffix(".weight")
    return found


def matching(patterns: Iterable[str], candidates: Mapping[str, str], field: str) -> list[str]:
    """The names that any of the patterns matches, in their order.

    Args:
        patterns: at least one.
        candidates: names here: names in the hub.
        field: of the adapter, for errors.

    Raises:
        RecipeError: when a pattern matches nothing.
    """
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name, theirs in candidates.items() if fits(name, pattern) or fits(theirs, pattern)}
        if not hits:
            ends = {end for name in candidates for end in (name, name.rpartition(".")[2])}
            near = did_you_mean(pattern, ends)
            known = f"Known: {', '.join(sorted({name.rpartition('.')[2] for name in candidates}))}."
            hint = near if near.startswith("Did") else known
            raise RecipeError(f"'{pattern}' matches no module of the model", where=f"adapter.{field}", do=hint)
        found |= hits
    return [name for name in candidates if name in found]


def fits(name: str, pattern: str) -> bool:
    """Whether a pattern is a name, or the end of one."""
    return pattern == ALL_LINEAR or fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")
