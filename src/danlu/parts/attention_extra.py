"""Learned keys and values in front of a pack's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from danlu.packed import Packed
from danlu.parts.attention import Asked, AttentionDropout, Backend, backend_for
from danlu.sight import Extra, Sight


class InFront:
    """Keys of no token before those of a pass's rows: a `danlu.contracts.Memory`.

    They are joined to the rows' own for each layer anew, so a gradient comes to them.

    Args:
        extra: what is in front.
    """

    def __init__(self, extra: Sequence[Extra]) -> None:
        self._extra, self._keys = extra, random_keys(extra)
        self._layers = of_layers(extra)

    def sight(self, packed: Packed) -> Sight:
        """Who sees whom."""
        return packed.sight.behind(runs_of(self._extra))

    def backend(self, layer: int) -> Backend:
        """How a layer attends."""
        return _Joined(*self._layers[layer], self._keys)

    def with_extra(self, extra: Sequence[Extra]) -> InFront:
        """See `danlu.contracts.Memory`."""
        return InFront([*extra, *self._extra])


@dataclass(frozen=True, eq=False)
class _Joined:
    """A back-end of keys in front of those it is given; tensors only, so that all layers are one compiled graph."""

    k: Float[Tensor, "P G K"]
    v: Float[Tensor, "P G K"]
    keys: Int[Tensor, " P"]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, sight: Sight, asked: Asked) -> Tensor:
        joined = torch.cat([self.k.to(k.dtype), k]), torch.cat([self.v.to(v.dtype), v])
        return backend_for(q.device)(q, *joined, sight, keyed_in_front(asked, self.keys))


def keyed_in_front(asked: Asked, keys: Int[Tensor, " P"]) -> Asked:
    """What is asked, with more random keys in front of the others'."""
    dropped = asked.dropout
    if dropped is None:
        return asked
    told = AttentionDropout(dropped.p, dropped.query_keys, torch.cat([keys, dropped.key_keys]), dropped.place)
    return asked._replace(dropout=told)


def runs_of(extra: Sequence[Extra]) -> list[tuple[Int[Tensor, " _"], tuple[int, int]]]:
    """The keys each run of rows sees, as `Sight.behind` takes them; what several runs see is there several times."""
    return [(one.offsets, run) for one in extra for run in one.runs]


def random_keys(extra: Sequence[Extra]) -> Int[Tensor, " P"]:
    """The random key of every key of `runs_of`."""
    return torch.cat([one.keys for one in extra for _ in one.runs])


def of_layers(extra: Sequence[Extra]) -> list[tuple[Float[Tensor, "P G K"], Float[Tensor, "P G K"]]]:
    """Each layer's keys and values of `runs_of`."""
    several = [one.values for one in extra for _ in one.runs]
    layers = (several[0] if len(several) == 1 else torch.cat(several, dim=2)).unbind(0)
    return [(layer[0], layer[1]) for layer in layers]
