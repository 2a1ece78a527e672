"""Attention on a CPU: one run of rows at a time, in the way that is fastest as things stand.

Each way is an opaque operator, so that a compiled block is one graph whatever the lengths in the pack are.
"""

from __future__ import annotations

from torch import Tensor

from danlu.parts.attention import Asked
from danlu.parts.attention_fused import attend_fused
from danlu.parts.attention_tiled import attend_tiled
from danlu.parts.compiled import is_compiling
from danlu.sight import Sight


def attend_on_cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sight: Sight,
    asked: Asked,
) -> Tensor:
    """See `danlu.parts.attention.attention`."""
    attend = attend_tiled if is_compiling() else attend_fused
    return attend(q, k, v, sight, asked)
