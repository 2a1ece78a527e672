"""Models that are asked and never trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from danlu.contracts import ArchitectureConfig, Memory, SequenceModel
from danlu.packed import Packed
from danlu.parts.readout import Readout


def freeze(model: SequenceModel) -> SequenceModel:
    """The model, none of whose weights has a gradient from now on, and which drops nothing."""
    return model.requires_grad_(False).eval()


class Bare(SequenceModel):
    """A model as it is without its adapter: asked in its place, without a gradient.

    It has no parameters of its own, and is neither trained nor moved: the other is.

    Args:
        worn: the model, which wears one.
    """

    def __init__(self, worn: SequenceModel) -> None:
        super().__init__()
        assert worn.adapted is not None
        self._worn = (worn,)  # no module of this one's

    @torch.no_grad()
    def forward(self, packed: Packed, readouts: Sequence[Readout], memory: Memory | None = None) -> tuple[Any, ...]:
        """See `SequenceModel`."""
        worn = self._worn[0]
        assert worn.adapted is not None
        with worn.adapted.off():
            answers: tuple[Any, ...] = worn(packed, readouts, memory)
        return answers

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """See `SequenceModel`: none of its own."""
        return ()

    def flops(self, packed: Packed, num_targets: int) -> int:
        """See `SequenceModel`."""
        return self._worn[0].flops(packed, num_targets)

    @property
    def config(self) -> ArchitectureConfig:  # type: ignore[override]
        """The fields that the model was built from."""
        return self._worn[0].config
