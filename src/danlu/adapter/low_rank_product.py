"""A frozen linear layer and the LoRA beside it as one operator.

    y = x W^T + b + s (x A^T) B^T

The small products add to the large ones' results where these lie, forward and backward: a result as wide as the layer
is then written once. As operators of their own they would be given a copy to add to, which costs a tenth of an update.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.library.custom_op("danlu::low_rank", mutates_args=())
def low_rank_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The layer's result and x A^T, in the dtype of x; a gradient comes back for x, A and B.

    Args:
        x: ``[T, I]``.
        weight: W, frozen, ``[O, I]``.
        bias: b, frozen, ``[O]``.
        down: A, ``[r, I]``.
        up: B, ``[O, r]``.
        scale: s.
    """
    y = F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    inner = F.linear(x, down.to(x.dtype))
    return y.addmm_(inner, up.t().to(x.dtype), alpha=scale), inner


@low_rank_product.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    rows = x.shape[0]  # a compiler's own number, which len() would make one that is fixed
    return x.new_empty(rows, weight.shape[0]), x.new_empty(rows, down.shape[0])


@torch.library.custom_op("danlu::low_rank_backward", mutates_args=())
def _gradients(
    upstream: Tensor, x: Tensor, inner: Tensor, weight: Tensor, down: Tensor, up: Tensor, scale: float, below: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for x (empty unless asked for, by `below`), A and B."""
    dtype = upstream.dtype
    of_inner = upstream @ up.t().to(dtype).contiguous().t()
    of_a, of_b = of_inner.t() @ x, inner.t() @ upstream
    if below:
        of_x = upstream @ weight.to(dtype)
        of_x.addmm_(of_inner, down.to(dtype), alpha=scale)
    else:
        of_x = x.new_empty(0)
    return of_x, of_a.to(down.dtype).mul_(scale), of_b.to(up.dtype).mul_(scale).t().contiguous()


@_gradients.register_fake
def _(
    upstream: Tensor, x: Tensor, inner: Tensor, weight: Tensor, down: Tensor, up: Tensor, scale: float, below: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x) if below else x.new_empty(0), torch.empty_like(down), torch.empty_like(up)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, down, up, ctx.scale = inputs
    ctx.save_for_backward(x, output[1], weight, down, up)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    below = ctx.needs_input_grad[0]
    of_x, of_a, of_b = _gradients(upstream, *ctx.saved_tensors, ctx.scale, below)
    return of_x if below else None, None, None, of_a, of_b, None


torch.library.register_autograd(low_rank_product, _backward, setup_context=_keep)
