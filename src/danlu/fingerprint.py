"""Fingerprints of weights: by which checkpoints are told apart, to the bit.

That of a tensor is the sum of its bits, read as integers, each times an odd number that tells its place, modulo 2^64:
exact, the same in any order of summation, and another when one element changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from danlu.contracts import SequenceModel

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_IN_CACHE, _AT_ONCE = 1 << 18, 1 << 24
"""Elements that are widened to 64 bits at a time, on a CPU and elsewhere."""


def fingerprints(tensors: Iterable[Tensor]) -> list[int]:
    """Each tensor's fingerprint, a signed integer of 64 bits; all are read from the device at once."""
    found = [_fingerprint(tensor) for tensor in tensors]
    return torch.stack(found).tolist() if found else []


def total(values: Sequence[int]) -> int:
    """One number for all, in which each has its place."""
    return sum((2 * i + 1) * value for i, value in enumerate(values)) % 2**64


def model_fingerprint(model: SequenceModel) -> int:
    """That of a model's own weights, an adapter's left out: as hub files name and turn them, whoever's code runs them.

    Args:
        model: whole, on one device.
    """
    held, turned = dict(model.named_parameters()), model.hub_transposed()
    names = sorted((theirs, ours) for ours, theirs in model.hub_names().items())
    return total(fingerprints(held[ours].t() if ours in turned else held[ours] for _, ours in names))


@torch.no_grad()
def _fingerprint(tensor: Tensor) -> Tensor:
    bits = tensor.detach().contiguous().view(-1).view(_INTEGERS[tensor.element_size()])
    size = _IN_CACHE if bits.device.type == "cpu" else _AT_ONCE
    places = torch.arange(1, 2 * min(len(bits), size) + 1, 2, device=bits.device)
    whole = torch.zeros((), dtype=torch.int64, device=bits.device)
    for number, part in enumerate(bits.split(size)):
        whole += ((places[: len(part)] + 2 * number * size) * part).sum()
    return whole
