"""How much of an update there is to compute."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from danlu.contracts import SequenceModel
from danlu.parts.quantized import Quantized


def passes(model: SequenceModel) -> float:
    """The matrix products of a forward and a backward pass, in forward passes.

    It is 3 where all of a model is trained: backward has a product for the gradient of each input and one for that of
    each weight. A frozen weight needs the first only, and nothing below the lowest trained weight either.

    Example:
        >>> from danlu.architecture.llama import LlamaConfig
        >>> model = LlamaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=2).build()
        >>> passes(model), passes(model.requires_grad_(False))
        (3.0, 1.0)
    """
    blocks = [[*_matrices(block.parameters()), *_quantized(block)] for block in model.blocks]
    inside = {id(p) for block in model.blocks for p in block.parameters()}
    outside = list(_matrices(p for p in model.parameters() if id(p) not in inside))
    whole = sum(size for block in blocks for size, _ in block) or 1
    if not any(p.requires_grad for p in model.parameters()):
        return 1.0
    trained = sum(size for block in blocks for size, requires in block if requires)
    started = any(requires for _, requires in outside)
    lowest = next((i for i, block in enumerate(blocks) if any(requires for _, requires in block)), len(blocks))
    above = whole if started else sum(size for block in blocks[lowest:] for size, _ in block)
    return 1.0 + (above + trained) / whole


def _quantized(block: nn.Module) -> Iterable[tuple[int, bool]]:
    return ((layer.num_weights, False) for layer in block.modules() if isinstance(layer, Quantized))


def _matrices(parameters: Iterable[nn.Parameter]) -> Iterable[tuple[int, bool]]:
    return ((p.numel(), p.requires_grad) for p in parameters if p.dim() >= 2)
