"""A base in 4 or 8 bits a weight: the linear layers of its blocks, which an adapter stands beside.

References:
    Dettmers et al., 2023, "QLoRA", https://arxiv.org/abs/2305.14314
"""

from __future__ import annotations

from torch import Tensor

from danlu.adapter.targets import is_transposed, linears
from danlu.contracts import SequenceModel
from danlu.errors import UnsupportedError
from danlu.parts.quantized import Quantization, Quantized


def quantize(model: SequenceModel, kind: Quantization) -> int:
    """Keep the matrices of a model's blocks in fewer bits, one after another, and freeze them; how many there are.

    Embeddings, norms, biases and the head stay as they are.

    Args:
        model: whole, on the host, without adapters.
        kind: how they are kept.

    Raises:
        UnsupportedError: when there are none, or `bitsandbytes` is not installed.
    """
    found = list(linears(model))
    if not found:
        what = "no linear layer of the model's blocks is known, so there is nothing to quantise"
        raise UnsupportedError(what, where="model.quantize", do="Leave it out.")
    for name in found:
        parent, _, own = name.rpartition(".")
        layer = model.get_submodule(name)
        weight, bias, turned = layer.weight, layer.bias, is_transposed(layer)
        assert isinstance(weight, Tensor)
        assert bias is None or isinstance(bias, Tensor)
        kept = Quantized(weight.t() if turned else weight, bias, kind, transposed=turned)
        setattr(model.get_submodule(parent), own, kept.train(layer.training))
    return len(found)


def quantized_kind(model: SequenceModel) -> str | None:
    """How a model's matrices are kept, where that is in fewer bits."""
    return next((layer.kind for layer in model.modules() if isinstance(layer, Quantized)), None)
