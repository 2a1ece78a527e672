"""Small values that a compiler is given rather than shown how to make."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("danlu::golden_multiples", mutates_args=())
def golden_multiples(num: int, device: torch.device) -> Tensor:
    """The multiples 0 to num - 1 of 0x9E3779B9, the golden ratio, as int32.

    Read from memory also where it is compiled: as a loop's counter times a constant it would overflow, and a C++
    compiler may take such a loop for one that ends sooner and leave the rest of a row unwritten.
    """
    return (torch.arange(num, device=device) * -0x61C88647).to(torch.int32)


@golden_multiples.register_fake
def _(num: int, device: torch.device) -> Tensor:
    return torch.empty(num, dtype=torch.int32, device=device)


@torch.library.custom_op("danlu::drop_threshold", mutates_args=())
def drop_threshold(p: float, device: torch.device) -> Tensor:
    """The int32 below which a fraction `p` of all values lies.

    A tensor also where it is compiled: as a constant of the graph it would stay what it was for another p when the
    graph is taken from the compiler's cache.
    """
    return torch.tensor(min(round(p * 2**32), 2**32 - 1) - 2**31, dtype=torch.int32, device=device)


@drop_threshold.register_fake
def _(p: float, device: torch.device) -> Tensor:
    return torch.empty((), dtype=torch.int32, device=device)
