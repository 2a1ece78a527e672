"""Context parallelism: one pack's rows shared out over ranks, for sequences that are too long for one.

A model knows nothing of it: it is given some rows of the pack, the readouts' questions about these, and a `Memory` in
which the other ranks' keys and values are (`danlu.parts.attention_ring`). Since a likelihood is a sum over targets,
each rank's is its own share of the whole, and so is its gradient: both are summed over ranks, as over packs.

Where a loss bends the sum of a sequence (a preference, a ratio), every rank is given the values of all rows, so that
each has the whole loss, and answers for its part of it: one over the number of ranks.

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
from danlu.engine.ranks import Ranks
from danlu.errors import UnsupportedError
from danlu.packed import ROOT, Packed
from danlu.parts.attention_ring import Ring, RingMemory, Runs, rows_in
from danlu.parts.readout import Readout


@dataclass(frozen=True)
class ProcessRing:
    """A `danlu.parts.attention_ring.Ring` of processes.

    Attributes:
        ranks: all processes of the run.
        group: those of them that are the ring.
        rank: which of the group this one is.
        size: how many they are.
    """

    ranks: Ranks
    group: dist.ProcessGroup
    rank: int
    size: int

    @staticmethod
    def of(ranks: Ranks, group: dist.ProcessGroup) -> ProcessRing:
        """The ring of all processes of a group, to which this one belongs."""
        return ProcessRing(ranks, group, dist.get_rank(group), dist.get_world_size(group))

    def hand_on(self, given: Tensor, taken: Tensor) -> Callable[[], None]:
        """See `Ring`.

        Raises:
            LostError: when a neighbour is gone; so does what is returned.
        """
        following, before = ((self.rank + step) % self.size for step in (1, -1))
        sides = (dist.isend, given, following), (dist.irecv, taken, before)
        exchanges = [dist.P2POp(way, x, group=self.group, group_peer=peer) for way, x, peer in sides]
        with self.ranks.lost():
            works = dist.batch_isend_irecv(exchanges)

        def wait(given: Tensor = given) -> None:  # what is sent has to stay until it is
            with self.ranks.lost():
                for work in works:
                    work.wait()

        return wait


def ringed(ranks: Ranks, size: int) -> Callable[[SequenceModel, bool], Ringed]:
    """What puts a model on the ring of so many neighbouring ranks that this one belongs to; all ranks must ask.

    Example: of four ranks with rings of two, the first two are one ring and the others another.
    """
    members = [list(range(first, first + size)) for first in range(0, ranks.size, size)]
    rings = [dist.new_group(each, timeout=ranks.patience) for each in members]
    own = ProcessRing.of(ranks, rings[ranks.rank // size])
    return lambda model, values: Ringed(model, own, values=values)


class Ringed(SequenceModel):
    """A model that every rank of a ring gives the same packs, and that computes some rows of each.

    Answers are of this rank's rows, sums that add up over the ranks (`Likelihood`); or, where that is wanted, values of
    all rows (`LogProbs`, `Values`), with a gradient as if each rank's loss were its part of the whole.

    Args:
        inner: the model; its parameters, training mode and precision are its own still.
        ring: the ranks.
        values: whether it is asked for values instead of sums.
    """

    def __init__(self, inner: SequenceModel, ring: Ring, *, values: bool = False) -> None:
        super().__init__()
        check_ringed(inner)
        self.inner, self.ring, self.values = inner, ring, values

    def forward(self, packed: Packed, readouts: Sequence[Readout], memory: Memory | None = None) -> tuple[Any, ...]:
        """See `SequenceModel`; all ranks have to call it, and then to go backward, in the same order.

        Raises:
            UnsupportedError: for a memory, or a readout that is not of the kind wanted.
        """
        if memory is not None:
            raise UnsupportedError("rows that are shared out over ranks cannot go on from a cache")
        shared = len(packed) >= 2 * self.ring.size  # fewer are not worth it: the first rank has them, the others none
        others = RingMemory(packed, self.ring) if shared else None
        runs: Runs = others.runs if others is not None else [(0, 0 if self.ring.rank else len(packed))]
        if unfit := [type(asked).__name__ for asked in readouts if asked.adds_up == self.values]:
            wrong = "no values of all rows for" if self.values else "no answer that adds up over"
            what = f"{unfit[0]} has {wrong} ranks which hold some rows each"
            raise UnsupportedError(what, do="Ask one rank that holds the whole pack.")
        parts: tuple[Any, ...] = self.inner(pieces(packed, runs), [asked.within(runs) for asked in readouts], others)
        return tuple(asked.whole(part, runs, self._added) for asked, part in zip(readouts, parts, strict=True))

    def _added(self, mine: Tensor) -> Tensor:
        return _Added.apply(mine, self.ring)

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


class _Added(torch.autograd.Function):
    """The sum over a ring's ranks; backward, each has its part of the same loss: what comes back is alike on all."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, ring: Ring) -> Tensor:
        ctx.size = ring.size
        total, given = mine.clone(), mine.contiguous()
        for _ in range(ring.size - 1 if len(mine) else 0):
            taken = torch.empty_like(given)
            ring.hand_on(given, taken)()
            total += taken
            given = taken
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.size, None


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
