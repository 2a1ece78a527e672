"""Context parallelism: one pack's rows shared out over ranks, for sequences that are too long for one.

A model knows nothing of it: it is given some rows of the pack, the readouts' questions about these, and a `Memory` in
which the other ranks' keys and values are (`danlu.parts.attention_ring`). Since a likelihood is a sum over targets,
each rank's is its own share of the whole, and so is its gradient: both are summed over ranks, as over packs.

References:
    Liu, Zaharia and Abbeel, 2023, "Ring attention with blockwise transformers", https://arxiv.org/abs/2310.01889
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from danlu.contracts import ArchitectureConfig, Memory, SequenceModel
from danlu.engine.parallel import check_ringed
from danlu.engine.ranks import PATIENCE, LostError, Ranks
from danlu.errors import UnsupportedError
from danlu.packed import ROOT, Packed
from danlu.parts.attention_ring import Ring, RingMemory, Runs, rows_in
from danlu.parts.readout import Readout


@dataclass(frozen=True)
class ProcessRing:
    """A `danlu.parts.attention_ring.Ring` of processes.

    Attributes:
        group: the processes.
        rank: which of the group this one is.
        size: how many they are.
    """

    group: dist.ProcessGroup
    rank: int
    size: int

    @staticmethod
    def of(group: dist.ProcessGroup) -> ProcessRing:
        """The ring of all processes of a group, to which this one belongs."""
        return ProcessRing(group, dist.get_rank(group), dist.get_world_size(group))

    def hand_on(self, given: Tensor, taken: Tensor) -> Callable[[], None]:
        """See `Ring`.

        Raises:
            RunError: when a neighbour is gone; so does what is returned.
        """
        following, before = ((self.rank + step) % self.size for step in (1, -1))
        sides = (dist.isend, given, following), (dist.irecv, taken, before)
        exchanges = [dist.P2POp(way, x, group=self.group, group_peer=peer) for way, x, peer in sides]
        try:
            works = dist.batch_isend_irecv(exchanges)
        except RuntimeError as error:
            raise self._lost(error) from error

        def wait(given: Tensor = given) -> None:  # what is sent has to stay until it is
            try:
                for work in works:
                    work.wait()
            except RuntimeError as error:
                raise self._lost(error) from error

        return wait

    def _lost(self, error: RuntimeError) -> LostError:
        reason = str(error).splitlines()[0][:200]
        return LostError(
            f"rank {self.rank} of a ring of {self.size} lost its neighbours: {reason}",
            do="See which rank ended first, and why; the last checkpoint is whole.",
        )


def ringed(ranks: Ranks, size: int) -> Callable[[SequenceModel], Ringed]:
    """What puts a model on the ring of so many neighbouring ranks that this one belongs to; all ranks must ask.

    Example: of four ranks with rings of two, the first two are one ring and the others another.
    """
    rings = [dist.new_group(list(range(first, first + size)), timeout=PATIENCE) for first in range(0, ranks.size, size)]
    own = ProcessRing.of(rings[ranks.rank // size])
    return lambda model: Ringed(model, own)


class Ringed(SequenceModel):
    """A model that every rank of a ring gives the same packs, and that computes some rows of each.

    Answers are of this rank's rows: of `Likelihood`, sums which add up over the ranks. Other readouts are refused.

    Args:
        inner: the model; its parameters, training mode and precision are its own still.
        ring: the ranks.
    """

    def __init__(self, inner: SequenceModel, ring: Ring) -> None:
        super().__init__()
        check_ringed(inner)
        self.inner, self.ring = inner, ring

    def forward(self, packed: Packed, readouts: Sequence[Readout], memory: Memory | None = None) -> tuple[Any, ...]:
        """See `SequenceModel`; all ranks have to call it, and then to go backward, in the same order.

        Raises:
            UnsupportedError: for a memory, or a readout whose answers do not add up over ranks.
        """
        if memory is not None:
            raise UnsupportedError("rows that are shared out over ranks cannot go on from a cache")
        shared = len(packed) >= 2 * self.ring.size  # fewer are not worth it: the first rank has them, the others none
        others = RingMemory(packed, self.ring) if shared else None
        runs: Runs = others.runs if others is not None else [(0, 0 if self.ring.rank else len(packed))]
        answers: tuple[Any, ...] = self.inner(pieces(packed, runs), [asked.within(runs) for asked in readouts], others)
        return answers

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """See `SequenceModel`."""
        return self.inner.blocks

    def flops(self, packed: Packed, num_targets: int) -> int:
        """See `SequenceModel`; of the whole pack."""
        return self.inner.flops(packed, num_targets)

    def train(self, mode: bool = True) -> Ringed:
        """Say whether the model is trained."""
        self.inner.train(mode)
        return self

    @property
    def training(self) -> bool:  # type: ignore[override]
        """Whether the model is being trained."""
        return self.inner.training

    @training.setter
    def training(self, mode: bool) -> None:
        """Nothing: it is the model that is trained or not; torch sets it on whatever is made."""

    @property
    def config(self) -> ArchitectureConfig:  # type: ignore[override]
        """The fields the model was built from."""
        return self.inner.config

    @property
    def compute_dtype(self) -> torch.dtype:  # type: ignore[override]
        """The model's precision."""
        return self.inner.compute_dtype

    @compute_dtype.setter
    def compute_dtype(self, dtype: torch.dtype) -> None:
        self.inner.compute_dtype = dtype

    @property
    def notes(self) -> tuple[str, ...]:  # type: ignore[override]
        """What one who trains the model should know."""
        return self.inner.notes


def pieces(packed: Packed, runs: Runs) -> Packed:
    """Some runs of a pack's rows, each part of a segment for itself; whom else they see is not in it."""
    rows = rows_in(runs)
    segment = packed.segment_of_row[rows]
    begins = torch.ones(len(rows), dtype=torch.bool)
    begins[1:] = (segment.diff() != 0) | (rows.diff() != 1)
    starts = begins.nonzero().squeeze(1)
    whose = segment[starts]

    def taken(x: Tensor) -> Tensor:
        return torch.cat([x[start:stop] for start, stop in runs])

    return Packed(
        tokens=taken(packed.tokens),
        positions=taken(packed.positions),
        cu_seqlens=torch.cat([starts, torch.tensor([len(rows)])]),
        parent=torch.full_like(whose, ROOT),
        causal=packed.causal[whose],
        sample=packed.sample[whose],
        keys=None if packed.keys is None else taken(packed.keys),
        adapter=None if packed.adapter is None else packed.adapter[whose],
        key=packed.key,
    )
