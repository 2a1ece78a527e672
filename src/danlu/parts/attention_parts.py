"""Attention to a part of the keys that rows see: what is merged when keys lie in several places.

Forward gives the values and the log-sum-exp over this part alone. Backward takes the *merged* output and log-sum-exp:
with them in place of the part's own, its share of the gradients comes out exactly, and no other part is needed
(`danlu.parts.attention_calls`).

On a CPU these are the operators of the back-ends. FlexAttention has no such backward pass, so there a part is computed
again and differentiated: with the share w = exp(lse' - lse) of a part (o', lse') in the merged (o, lse),

    do' = w do,    dlse' = w sum(do (o' - o)).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from danlu.errors import UnsupportedError
from danlu.parts.attention import Asked
from danlu.parts.attention_calls import keyed, reached
from danlu.parts.attention_fused import fused_attention, fused_attention_backward
from danlu.parts.attention_tiled import tiled_attention, tiled_attention_backward
from danlu.parts.compiled import is_compiling
from danlu.sight import Sight


def attend_part(
    q: Float[Tensor, "Tq H K"], k: Float[Tensor, "Tk G K"], v: Float[Tensor, "Tk G K"], sight: Sight, asked: Asked
) -> tuple[Float[Tensor, "Tq H K"], Float[Tensor, "H Tq"]]:
    """The values and the log-sum-exp over these keys: zero and -inf where a row sees none of them.

    Raises:
        UnsupportedError: on a device that is neither a CPU nor CUDA.
    """
    if q.device.type == "cpu":
        if _fused(asked):
            return fused_attention(q, k, v, *reached(sight, asked), asked.scale)
        return tiled_attention(q, k, v, *reached(sight, asked), asked.scale, *keyed(asked), asked.softcap)
    if q.device.type == "cuda":
        return attend_part_by_flex(q, k, v, sight, asked)
    raise UnsupportedError(f"attention to keys in several places is not there for {q.device.type}")


def attend_part_backward(
    grad: Float[Tensor, "Tq H K"],
    q: Float[Tensor, "Tq H K"],
    k: Float[Tensor, "Tk G K"],
    v: Float[Tensor, "Tk G K"],
    out: Float[Tensor, "Tq H K"],
    lse: Float[Tensor, "H Tq"],
    sight: Sight,
    asked: Asked,
) -> tuple[Float[Tensor, "Tq H K"], Float[Tensor, "Tk G K"], Float[Tensor, "Tk G K"]]:
    """This part's share of the gradients of queries, keys and values.

    Args:
        grad: of the merged output.
        q: queries.
        k: the part's keys.
        v: its values.
        out: the merged output.
        lse: the merged log-sum-exp.
        sight: who sees whom of the part.
        asked: what forward was asked.

    Raises:
        UnsupportedError: on a device that is neither a CPU nor CUDA.
    """
    if q.device.type != "cpu":
        return attend_part_by_flex_backward(grad, q, k, v, out, lse, sight, asked)
    given = (grad, q, k, v, out, lse, *reached(sight, asked), asked.scale)
    if _fused(asked):
        return fused_attention_backward(*given)
    return tiled_attention_backward(*given, *keyed(asked), asked.softcap)


def _fused(asked: Asked) -> bool:
    return asked.dropout is None and asked.softcap is None and not is_compiling()


def attend_part_by_flex(q: Tensor, k: Tensor, v: Tensor, sight: Sight, asked: Asked) -> tuple[Tensor, Tensor]:
    """`attend_part` through FlexAttention; both results are differentiable.

    Raises:
        ValueError: when there are no queries or no keys.
    """
    from danlu.parts.attention_cuda import flex_part, planned_mask

    mask = planned_mask(sight, asked.window)
    if mask is None:
        raise ValueError(f"{len(q)} queries cannot attend to {len(k)} keys: there has to be one of each")
    return flex_part(q, k, v, mask, asked)


def attend_part_by_flex_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, sight: Sight, asked: Asked
) -> tuple[Tensor, Tensor, Tensor]:
    """`attend_part_backward` through FlexAttention: computed again, and differentiated."""
    q, k, v = inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    with torch.enable_grad():
        values, own = attend_part_by_flex(q, k, v, sight, asked)
    share = (own.detach() - lse).exp().nan_to_num(0.0)
    upstream = grad.to(lse.dtype) * share.t()[..., None]
    slope = (upstream * (values.detach() - out)).sum(-1).t()
    dq, dk, dv = torch.autograd.grad((values, own), inputs, (upstream.to(values.dtype), slope.to(own.dtype)))
    return dq, dk, dv
