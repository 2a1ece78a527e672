"""Activation recomputation: what backward needs is made again instead of kept, block by block.

`full` keeps a block's input and runs the block once more in backward. `selective` keeps what matrix products and
attention gave, which is dear to make, and makes the rest again. Either changes no result: random numbers are keyed, so
the second time they are what they were.

References:
    Chen et al., 2016, "Training deep nets with sublinear memory cost", https://arxiv.org/abs/1604.06174
    Korthikanti et al., 2022, "Reducing activation recomputation in large transformer models",
    https://arxiv.org/abs/2205.05198
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from danlu.contracts import SequenceModel

Recomputed: TypeAlias = Literal["none", "selective", "full"]
"""Which activations of a block are made again in backward."""

_ATTENTION = "attention"
_PRODUCTS = frozenset({"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear", "aten::_scaled_mm"})


def recompute(model: SequenceModel, mode: Recomputed) -> None:
    """Have every block of a model, from now on, keep less for backward; nothing changes where no gradient is taken."""
    if mode == "none":
        return
    run = _run_keeping_products if mode == "selective" else _run
    for block in model.blocks:
        block.forward = functools.partial(run, block.forward)


def _run(forward: Callable[..., Any], *args: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **named)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **named)


def _run_keeping_products(forward: Callable[..., Any], *args: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **named)
    settings: Any = {"use_reentrant": False, "preserve_rng_state": False, "context_fn": _keeping_products}
    return checkpoint(forward, *args, **settings, **named)


def _keeping_products() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(_: Any, operator: Any, *args: Any, **named: Any) -> CheckpointPolicy:
    name = operator.name().split(".")[0]
    kept = name in _PRODUCTS or _ATTENTION in name
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
