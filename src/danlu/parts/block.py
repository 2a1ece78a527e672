"""What the blocks of a decoder share: what every block of a pass is given, and attention among the pack's own rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from danlu.contracts import Memory
from danlu.packed import Packed
from danlu.parts.attention import AttentionDropout, Backend, attention
from danlu.parts.linear import Dropout
from danlu.sight import Sight


class Pass(NamedTuple):
    """What every block of one pass is given beside its input; tensors only, so that a compiled block is one graph.

    Attributes:
        calls, first, end, query_offset, key_offset: the fields of `Sight`.
        keys: one random key a row, or None when nothing is random.
        cos, sin: the rotary angles of each row; empty where positions are learned.
    """

    calls: Int[Tensor, "C 5"]
    first: Int[Tensor, " Tk"]
    end: Int[Tensor, " Tk"]
    query_offset: Int[Tensor, " T"]
    key_offset: Int[Tensor, " Tk"]
    keys: Int[Tensor, " T"] | None
    cos: Float[Tensor, "T R"]
    sin: Float[Tensor, "T R"]

    @staticmethod
    def of(packed: Packed, memory: Memory | None, angles: tuple[Tensor, Tensor] | None = None) -> Pass:
        """What the blocks need to know of a pack."""
        sight = packed.sight if memory is None else memory.sight(packed)
        nothing = torch.zeros(len(packed), 0, device=packed.tokens.device)
        cos, sin = angles or (nothing, nothing)
        tensors = (sight.calls, sight.first, sight.end, sight.query_offset, sight.key_offset)
        return Pass(*tensors, packed.keys, cos, sin)

    @property
    def sight(self) -> Sight:
        """Who sees whom."""
        return Sight(self.calls, self.first, self.end, self.query_offset, self.key_offset)


def backends(memory: Memory | None, num_layers: int) -> Iterator[Backend | None]:
    """How each layer attends: as its memory says, where there is one.

    Asked for outside of blocks, which could not be compiled as one if each had a number of its own.
    """
    return (None if memory is None else memory.backend(layer) for layer in range(num_layers))


def attend(
    q: Float[Tensor, "T H K"],
    k: Float[Tensor, "T G K"],
    v: Float[Tensor, "T G K"],
    given: Pass,
    *,
    dropout: Dropout,
    window: int | None = None,
    backend: Backend | None = None,
) -> Float[Tensor, "T H*K"]:
    """Attention among a pack's rows (by a memory's back-end also to what it has), heads side by side in the result."""
    dropped = None
    if given.keys is not None and dropout.p > 0:
        dropped = AttentionDropout(dropout.p, given.keys, given.keys, dropout.place)
    return attention(q, k, v, given.sight, window=window, dropout=dropped, backend=backend).flatten(1)
