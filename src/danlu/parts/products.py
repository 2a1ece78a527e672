"""Products of matrices side by side, by the library that is fastest at their size.

Small ones cost a call, and go through one call for all. Of large ones in float32 on a processor, oneDNN does up to
twice as many a second as the BLAS that torch is built with, which knows only some makers' processors well. No gradient
goes through any of them.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

LARGE = 1 << 22
"""Multiplications of one product from which it is large."""
_ONEDNN = torch.backends.mkldnn.is_available() and "mkldnn::_linear_pointwise" in torch._C._dispatch_get_all_op_names()


def product(
    a: Float[Tensor, "K B I"], b: Float[Tensor, "K I O"], out: Float[Tensor, "K B O"] | None = None
) -> Float[Tensor, "K B O"]:
    """``a_k @ b_k`` for each k."""
    if not _large(a, b):
        return torch.bmm(a, b) if out is None else torch.bmm(a, b, out=out)
    return _gathered([_onednn(a[k], b[k], None) for k in range(len(a))], out)


def affine(
    bias: Float[Tensor, "K 1 O"], a: Float[Tensor, "K B I"], b: Float[Tensor, "K I O"]
) -> Float[Tensor, "K B O"]:
    """``a_k @ b_k + bias_k`` for each k."""
    if not _large(a, b):
        return torch.baddbmm(bias, a, b)
    return _gathered([_onednn(a[k], b[k], bias[k, 0]) for k in range(len(a))], None)


def matrix_product(
    a: Float[Tensor, "B I"], b: Float[Tensor, "I O"], out: Float[Tensor, "B O"] | None = None
) -> Float[Tensor, "B O"]:
    """``a @ b``."""
    if a.shape[0] * b.numel() < LARGE or not _known(a):
        return torch.mm(a, b) if out is None else torch.mm(a, b, out=out)
    made = _onednn(a, b, None)
    return made if out is None else out.copy_(made)


def matrix_affine(bias: Float[Tensor, "O 1"], a: Float[Tensor, "O I"], b: Float[Tensor, "I N"]) -> Float[Tensor, "O N"]:
    """``a @ b + bias``."""
    if a.shape[0] * b.numel() < LARGE or not _known(a):
        return torch.addmm(bias, a, b)
    return _onednn(a, b, None).add_(bias)


def matrix_added(c: Float[Tensor, "O N"], a: Float[Tensor, "O I"], b: Float[Tensor, "I N"]) -> Float[Tensor, "O N"]:
    """``c + a @ b``."""
    if a.shape[0] * b.numel() < LARGE or not _known(a):
        return torch.addmm(c, a, b)
    return _onednn(a, b, None).add_(c)


def _large(a: Tensor, b: Tensor) -> bool:
    return _known(a) and a.shape[1] * a.shape[2] * b.shape[2] >= LARGE


def _known(a: Tensor) -> bool:
    return _ONEDNN and a.dtype is torch.float32 and a.device.type == "cpu"


def _onednn(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b.T, bias, "none", [], "")


def _gathered(each: list[Tensor], out: Tensor | None) -> Tensor:
    if out is not None:
        for to, one in zip(out, each, strict=True):
            to.copy_(one)
        return out
    return each[0][None] if len(each) == 1 else torch.stack(each)
