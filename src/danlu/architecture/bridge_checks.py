"""What of `transformers` cannot go through the bridge, and is refused by name.

Three looks are taken: at the files, before anything is loaded; at what each layer asks of attention; and at numbers,
since a model may mix its tokens in ways that no list knows: a packed forest through the bridge has to give the logits
that the model itself, with its own attention, gives for each path alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from danlu.architecture.bridge_attention import Layer
from danlu.architecture.bridge_reading import entries
from danlu.architecture.hub import weight_names
from danlu.errors import UnsupportedError
from danlu.hub_files import read_json
from danlu.packed import ROOT, Packed

_PACK_WIDE_ROTARY = ("dynamic", "longrope", "su")
"""Rotary scalings that take their frequencies from the longest sequence in the pack; "su" is an older name."""
_LAYER_TYPES = {"full_attention", "sliding_attention"}
_PROBE = ((5, ROOT), (4, 0), (6, 0), (1, ROOT), (7, ROOT))
"""Length and parent of the segments that are computed both ways."""
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_LOW_PRECISION = 5e-2


def check_files(directory: Path, transformers: Any, *, trust_remote_code: bool) -> None:
    """Look at a directory without loading it.

    Raises:
        CheckpointError: when a file is absent, cut short or altered.
        UnsupportedError: when the model is none that `transformers` itself knows as causal, its code is in the
            directory and not trusted, its weights are quantised, or its rotary scaling looks at the whole pack.
    """
    file = directory / "config.json"
    config = read_json(file)
    kind = config.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        if "auto_map" not in config:
            raise UnsupportedError(f"transformers {transformers.__version__} knows no model_type {kind!r}", where=file)
        if not trust_remote_code:
            do = "Read it, and say trust_remote_code if it may run here."
            raise UnsupportedError(f"the model '{kind}' is code that comes with the checkpoint", where=file, do=do)
    elif config.get("is_encoder_decoder") or kind not in _causal_kinds(transformers):
        do = "Use a decoder-only model."
        raise UnsupportedError(f"a model of type '{kind}' is not a causal one", where=file, do=do)
    if isinstance(quantised := config.get("quantization_config"), Mapping):
        method = quantised.get("quant_method", "unknown")
        do = "Use a checkpoint in floating point."
        raise UnsupportedError(f"the weights are quantised ({method})", where=file, do=do)
    check_config(config, str(kind), file)
    weight_names(directory)


def _causal_kinds(transformers: Any) -> set[str]:
    return set(transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def check_config(config: Mapping[str, Any], kind: str, where: Path | None = None) -> None:
    """Refuse what a config says by name: kinds of layers, and rotary frequencies that depend on the whole pack.

    Raises:
        UnsupportedError: naming the kind of layer or the scaling.
    """
    for name, value in entries(config):
        own = name.rpartition(".")[2]
        if "rope" in name and own in ("rope_type", "type") and value in _PACK_WIDE_ROTARY:
            raise UnsupportedError(
                f"rotary scaling '{value}' of '{kind}' takes its frequencies from the longest sequence of a pack, "
                "so neighbours would change each other's result",
                where=where,
                do="Use a checkpoint with default, linear, llama3 or yarn scaling.",
            )
        if own == "layer_types" and isinstance(value, list | tuple) and (others := set(value) - _LAYER_TYPES):
            named = ", ".join(sorted(map(str, others)))
            raise UnsupportedError(
                f"'{kind}' has layers of another kind than full or sliding attention ({named})", where=where
            )


def check_layers(kind: str, layers: Sequence[Layer], num_layers: int, model: nn.Module) -> None:
    """Every layer mixes tokens through the attention interface, once, in a way that `Sight` and a window can say.

    Raises:
        UnsupportedError: naming the layers that do not.
    """
    if not layers:
        raise UnsupportedError(f"a model of type '{kind}' mixes tokens without transformers' attention interface")
    numbers = [layer.number for layer in layers]
    if sorted(numbers) != list(range(num_layers)):
        others = sorted(set(range(num_layers)) - set(numbers))
        which = f"layers {others}" if others else "some layers"
        raise UnsupportedError(f"{which} of '{kind}' mix tokens otherwise than by attending once")
    for layer in layers:
        if layer.mask_window is not None and layer.mask_window != (layer.window or 0):
            seen = f"its mask sees {layer.mask_window} back" if layer.mask_window > 0 else "its mask is another"
            said = "without a window" if layer.window is None else f"told of a window of {layer.window}"
            raise UnsupportedError(f"layer {layer.number} of '{kind}' attends {said}, while {seen}")
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise UnsupportedError(f"a model of type '{kind}' normalises over a batch, so its samples change each other")


def probe(vocabulary: int, reserved: set[int]) -> Packed:
    """A shared prompt with two answers, a single token and a document, of tokens that mean nothing special."""
    plain = [token for token in range(min(vocabulary, 1 << 12)) if token not in reserved] or [0]
    ids = iter(range(sum(length for length, _ in _PROBE)))
    segments = [[plain[(next(ids) * 7919 + 3) % len(plain)] for _ in range(length)] for length, _ in _PROBE]
    return Packed.tree(segments, parents=[parent for _, parent in _PROBE])


def check_isolation(packed: Packed, bridged: Callable[[Packed], Tensor], alone: Callable[[Tensor], Tensor]) -> None:
    """Each path of a forest has the logits that the model itself gives for it.

    Args:
        packed: the forest.
        bridged: a pack's logits through the bridge, ``[T, V]``.
        alone: a sequence's logits from the model's own forward, ``[L, V]``.

    Raises:
        UnsupportedError: saying what differed.
    """
    together = bridged(packed)
    for path, rows in packed.unroll():
        expected = alone(path.tokens)
        if _same(together[rows.to(together.device)], expected):
            continue
        if _same(bridged(path), expected):
            what = "neighbours in a pack change each other's logits"
        else:
            what = "it computes something between its layers' attention and its logits that the bridge does not"
        raise UnsupportedError(what)


def _same(found: Tensor, expected: Tensor) -> bool:
    tolerance = _TOLERANCE.get(expected.dtype, _LOW_PRECISION)
    worst = float((found - expected).abs().max())
    return worst <= tolerance * max(float(expected.abs().max()), 1e-3)
