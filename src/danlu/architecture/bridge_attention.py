"""Packed attention as `transformers` asks for it: what its models call in place of their own attention.

A model of `transformers` looks its attention function up by name and hands on to it whatever keyword arguments its own
forward was given. So who sees whom (a `Pass`) travels as an argument, from the bridge through the layers to `attend`,
and there is no state between passes.

References:
    Hugging Face, 2025, "Attention interface", https://huggingface.co/docs/transformers/attention_interface
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.contracts import Memory
from danlu.errors import UnsupportedError
from danlu.parts.attention import AttentionDropout, attention
from danlu.parts.block import Pass
from danlu.parts.linear import Dropout

PACKED, OBSERVED = "danlu", "danlu-observed"
"""The names of `attend` and `observe` in the interface."""
KEYED_DROPOUT = "keyed_dropout"
"""What an attention module's dropout is called, where it has one."""

_KNOWN = {
    *("danlu", "danlu_memory", "danlu_layers"),
    *("scaling", "dropout", "sliding_window", "softcap", "s_aux", "is_causal", "position_bias"),
    *("position_ids", "position_embeddings", "cache_position", "use_cache", "output_attentions"),
}
"""What a layer may hand to its attention: what `attend` uses or `observe` looks at, and what changes nothing."""
_FARTHEST = 1 << 18
"""How far back a mask is read when its window is looked for."""


class Layer(NamedTuple):
    """What one layer asks of attention.

    Attributes:
        module: the module that asks.
        number: which layer it says it is; its place in a `Memory`.
        heads, groups: of queries, and of keys and values.
        key_width, value_width: of a head.
        window: how far back it says it sees, itself included; None is without limit.
        mask_window: how far back the mask it was given sees (0: without limit), or None when it was given none.
        dropout: the fraction of probabilities dropped while training.
    """

    module: nn.Module
    number: int
    heads: int
    groups: int
    key_width: int
    value_width: int
    window: int | None
    mask_window: int | None
    dropout: float


def attend(
    module: nn.Module,
    query: Float[Tensor, "1 H T K"],
    key: Float[Tensor, "1 G T K"],
    value: Float[Tensor, "1 G T Kv"],
    attention_mask: Tensor | None,
    *,
    danlu: Pass,
    danlu_memory: Memory | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, " H"] | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "1 T H Kv"], None]:
    """Attention among a pack's rows (and to what memory has), with the arguments of the interface.

    Args:
        module: the layer's attention.
        query: queries.
        key: keys.
        value: values; a head of theirs may be narrower than one of the keys.
        attention_mask: none; the pass says who sees whom.
        danlu: what the bridge handed in.
        danlu_memory: likewise.
        scaling: of the scores.
        sliding_window: how far back a row sees, itself included.
        softcap: of the scores.
        s_aux: each head's sink.

    Raises:
        UnsupportedError: when there is a mask all the same: the layer made it.
    """
    if attention_mask is not None:
        raise UnsupportedError("a layer makes a mask of its own, which packed attention does not know")
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    q, k, v = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
    width = v.shape[-1]
    backend = None if danlu_memory is None else danlu_memory.backend(module.layer_idx)  # type: ignore[arg-type]
    out = attention(
        q,
        k,
        F.pad(v, (0, k.shape[-1] - width)) if width < k.shape[-1] else v,
        danlu.sight,
        window=sliding_window or None,
        scale=scaling,
        dropout=_dropout(module, danlu),
        softcap=softcap,
        sinks=s_aux,
        backend=backend,
    )
    return out[None, ..., :width], None


def _dropout(module: nn.Module, given: Pass) -> AttentionDropout | None:
    drop = module._modules.get(KEYED_DROPOUT)
    if given.keys is None or not isinstance(drop, Dropout):
        return None
    return AttentionDropout(drop.p, given.keys, given.keys, drop.place)


def observe(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **asked: Any,
) -> tuple[Tensor, None]:
    """`attend`, noting what the layer asks for in the list that travels as `danlu_layers`.

    Raises:
        UnsupportedError: when the layer asks for what `attend` does not know.
    """
    if "danlu" not in asked:
        raise UnsupportedError("its layers do not hand on what their model is given")
    causal = asked.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        raise UnsupportedError("its tokens see what comes after them")
    if asked.get("position_bias") is not None:
        raise UnsupportedError("its scores are shifted by the distance of tokens (ALiBi or learned)")
    if further := sorted(name for name in asked.keys() - _KNOWN if asked[name] is not None):
        raise UnsupportedError(f"its layers ask for more of attention ({', '.join(further)})")
    if attention_mask is not None and attention_mask.numel() != 1:
        raise UnsupportedError("its layers make masks of their own")
    if value.shape[-1] > key.shape[-1]:
        raise UnsupportedError(f"its values are wider ({value.shape[-1]}) than its keys ({key.shape[-1]})")
    noted = Layer(
        module,
        number=getattr(module, "layer_idx", -1),
        heads=query.shape[1],
        groups=key.shape[1],
        key_width=key.shape[-1],
        value_width=value.shape[-1],
        window=asked.get("sliding_window") or None,
        mask_window=None if attention_mask is None else int(attention_mask),
        dropout=float(asked.get("dropout", 0.0)),
    )
    asked["danlu_layers"].append(noted)
    return attend(module, query, key, value, None, **asked)


def observed_mask(*, mask_function: Callable[..., Bool[Tensor, " k"]], **_: Any) -> Int[Tensor, "1 1 1 1"]:
    """In place of a mask, how far back it lets a row see: 0 without limit, -1 when that is no run of keys."""
    zero, keys = torch.tensor(0), torch.arange(_FARTHEST)
    seen = torch.as_tensor(mask_function(zero, zero, keys[-1], keys)).expand(_FARTHEST)
    reach = int(seen.sum())
    window = 0 if reach == _FARTHEST else reach if bool(seen[_FARTHEST - reach :].all()) else -1
    return torch.tensor([[[[window]]]])


def register(transformers: Any) -> None:
    """Make both known to `transformers`; a name without a mask function is one that needs no mask."""
    transformers.AttentionInterface.register(PACKED, attend)
    transformers.AttentionInterface.register(OBSERVED, observe)
    transformers.AttentionMaskInterface.register(OBSERVED, observed_mask)
