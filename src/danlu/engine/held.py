"""What of a tensor that is shared out over ranks is here."""

from __future__ import annotations

import sys

from torch import Tensor


def held(tensor: Tensor) -> Tensor:
    """What this rank holds of a parameter, a gradient or an average: all of it, or its share."""
    if "torch.distributed.tensor" not in sys.modules:  # a slow import, and nothing can be sharded before it
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
