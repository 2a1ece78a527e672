"""Attention where all segments are of one length and see themselves in full: one batched product."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from danlu.parts.attention import Asked, backend_for
from danlu.sight import Sight


class Alike:
    """A back-end (`danlu.parts.attention.Backend`) for segments that are alike.

    Args:
        length: rows of each segment; each sees all of itself and nothing else.
        twice: whether gradients may be differentiated again, which takes memory for all scores.
    """

    def __init__(self, length: int, *, twice: bool = False) -> None:
        self.length, self.twice = length, twice

    def __call__(
        self,
        q: Float[Tensor, "T H K"],
        k: Float[Tensor, "T G K"],
        v: Float[Tensor, "T G K"],
        sight: Sight,
        asked: Asked,
    ) -> Float[Tensor, "T H K"]:
        """See `danlu.parts.attention.attention`."""
        if asked[2:] != (None, None, None) or asked.window is not None or q.shape[1] != k.shape[1]:
            return backend_for(q.device)(q, k, v, sight, asked)
        q_, k_, v_ = (x.view(-1, self.length, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        if self.twice:
            out = (q_ * asked.scale @ k_.mT).softmax(-1) @ v_
        else:
            out = F.scaled_dot_product_attention(q_, k_, v_, scale=asked.scale)
        return out.transpose(1, 2).reshape(q.shape)
