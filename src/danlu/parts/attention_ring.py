"""Ring attention: a pack's rows are shared out over ranks, and keys and values travel from rank to rank.

Each rank holds some rows of a pack, their queries, keys and values. In as many turns as there are ranks, everybody
attends to the keys and values that are with it and hands them on to the next rank meanwhile; what a row found at each
turn is merged by log-sum-exp. In the backward pass they travel once more, and their gradients behind them, until these
are home. So a rank keeps 1 / R of the activations and the result is that of one rank alone.

A pack is cut into 2 R runs of rows, and rank r holds the r-th from either end: where every row sees all before it, all
ranks have as much to do, at every turn.

References:
    Liu, Zaharia and Abbeel, 2023, "Ring attention with blockwise transformers", https://arxiv.org/abs/2310.01889
    Brandon et al., 2023, "Striped attention" (balance under causal sight), https://arxiv.org/abs/2311.09431
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from danlu.packed import Packed
from danlu.parts.attention import Asked
from danlu.parts.attention_calls import NO_WINDOW, Merged, precise, sink_gradient
from danlu.parts.attention_extra import of_layers, random_keys, runs_of
from danlu.parts.attention_parts import attend_part, attend_part_backward
from danlu.sight import Extra, Sight

Runs: TypeAlias = Sequence[tuple[int, int]]
"""Runs ``start:stop`` of rows, in order and apart from each other."""


class Ring(Protocol):
    """Ranks in a circle, each of which hands on to the next what it has from the one before.

    Attributes:
        rank: which one this is, from 0.
        size: how many there are.
    """

    @property
    def rank(self) -> int:
        """See the class."""
        ...

    @property
    def size(self) -> int:
        """See the class."""
        ...

    def hand_on(self, given: Tensor, taken: Tensor) -> Callable[[], None]:
        """Begin to send one tensor to the next rank and to receive another from the one before.

        Both are contiguous, and neither may be touched before what is returned was called, which waits for both. All
        ranks call in the same order.
        """
        ...


def zigzag(num_rows: int, size: int) -> list[Runs]:
    """Which rows each rank holds: of 2 R runs of nearly equal length the r-th, and the r-th from the end.

    Example:
        >>> zigzag(9, 2)
        [[(0, 2), (6, 9)], [(2, 4), (4, 6)]]
    """
    bounds = [i * num_rows // (2 * size) for i in range(2 * size + 1)]
    runs = list(pairwise(bounds))
    return [[runs[rank], runs[-1 - rank]] for rank in range(size)]


def rows_in(runs: Runs) -> Int[Tensor, " n"]:
    """The rows one by one."""
    return torch.cat([torch.arange(start, stop) for start, stop in runs])


def clip(sight: Sight, queries: Runs, keys: Runs) -> Sight:
    """Who sees whom of some query rows and some key rows, each side's rows counted among themselves.

    Rows stay in order, so what was an interval still is one.
    """
    device = sight.first.device
    query_rows, key_rows = (rows_in(runs).to(device) for runs in (queries, keys))
    pieces = [
        _clip_calls(sight.calls, query, key) + torch.tensor([*[q_shift] * 2, *[k_shift] * 2, 0])
        for query, q_shift in zip(queries, _shifts(queries), strict=True)
        for key, k_shift in zip(keys, _shifts(keys), strict=True)
    ]
    return Sight(
        torch.cat(pieces),
        torch.searchsorted(query_rows, sight.first[key_rows]),
        torch.searchsorted(query_rows, sight.end[key_rows]),
        sight.query_offset[query_rows],
        sight.key_offset[key_rows],
    )


def _shifts(runs: Runs) -> list[int]:
    """For each run what makes of its rows places among all rows of the runs."""
    shifts, before = [], 0
    for start, stop in runs:
        shifts.append(before - start)
        before += stop - start
    return shifts


def _clip_calls(calls: Int[Tensor, "C 5"], query: tuple[int, int], key: tuple[int, int]) -> Int[Tensor, "c 5"]:
    """The parts of calls that lie in one run of query rows and one of key rows.

    Of a causal call, rows are counted in queries: query i sees key j where j <= i. The queries from a to b then see
    those of the keys from c to d which lie before a as a whole; among the tokens that are on both sides, causally; and
    the queries behind d see the keys from a on as a whole, too.
    """
    q0, q1, k0, k1, causal = calls.unbind(1)
    a, b = q0.clamp(*query), q1.clamp(*query)
    c, d = k0.clamp(*key), k1.clamp(*key)
    full = torch.stack([a, b, c, d, causal], dim=1)[causal == 0]
    a, b, c, d, shift = (x[causal == 1] for x in (a, b, c, d, k0 - q0))
    c, d = c - shift, d - shift
    low, high = torch.maximum(a, c), torch.minimum(b, d)
    no, yes = torch.zeros_like(a), torch.ones_like(a)
    before = torch.stack([a, b, c + shift, torch.minimum(d, a) + shift, no], dim=1)
    among = torch.stack([low, high, low + shift, high + shift, yes], dim=1)
    behind = torch.stack([torch.maximum(a, d), b, low + shift, d + shift, no], dim=1)
    found = torch.cat([full, before, among, behind])
    return found[(found[:, 0] < found[:, 1]) & (found[:, 2] < found[:, 3])]


@dataclass(frozen=True, eq=False)
class _Visit:
    """The keys and values of one rank, when they are here.

    Attributes:
        num_rows: how many they are.
        sight: which rows of this rank see which of them.
        keys: their random keys, when the pass is random.
    """

    num_rows: int
    sight: Sight
    keys: Tensor | None

    @property
    def seen(self) -> bool:
        """Whether anyone here sees anything of it."""
        return len(self.sight.calls) > 0


class RingMemory:
    """The keys and values of one pack, of which this rank holds some rows: a `danlu.contracts.Memory`.

    Args:
        packed: the whole pack, on every rank; at least two rows a rank.
        ring: the ranks.

    Attributes:
        runs: the rows that are here.
    """

    def __init__(self, packed: Packed, ring: Ring) -> None:
        self.ring, shares = ring, zigzag(len(packed), ring.size)
        self.runs = shares[ring.rank]
        self._sight = clip(packed.sight, self.runs, [(0, len(packed))])
        self._visits = []
        for turn in range(ring.size):
            there = shares[(ring.rank - turn) % ring.size]
            keys = None if packed.keys is None else torch.cat([packed.keys[start:stop] for start, stop in there])
            num_rows = sum(stop - start for start, stop in there)
            self._visits.append(_Visit(num_rows, clip(packed.sight, self.runs, there), keys))
        self.num_extra, self._extra = 0, list[tuple[Tensor, Tensor]]()

    def with_extra(self, extra: Sequence[Extra]) -> RingMemory:
        """See `danlu.contracts.Memory`: every rank has them, so they stay where they are."""
        own, keys = self._visits[0], random_keys(extra)
        self.num_extra, self._extra = len(keys), of_layers(extra)
        self._sight = self._sight.behind(runs_of(extra))
        keyed = None if own.keys is None else torch.cat([keys, own.keys])
        self._visits[0] = replace(own, sight=own.sight.behind(runs_of(extra)), keys=keyed)
        return self

    def sight(self, packed: Packed) -> Sight:
        """Which rows of this rank see which rows of the whole pack."""
        return self._sight

    def backend(self, layer: int) -> Callable[..., Tensor]:
        """How the rows attend: to everybody's keys and values, one rank's after another's."""
        return partial(self._attend_extra, *self._extra[layer]) if self.num_extra else self._attend

    def _attend_extra(
        self, extra_k: Tensor, extra_v: Tensor, q: Tensor, k: Tensor, v: Tensor, sight: Sight, asked: Asked
    ) -> Tensor:
        joined = torch.cat([extra_k.to(k.dtype), k]), torch.cat([extra_v.to(v.dtype), v])
        return self._attend(q, *joined, sight, asked)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # ranks talk to each other here
    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sight: Sight,
        asked: Asked,
    ) -> Tensor:
        out: Tensor = _Travelling.apply(q, k, v, asked.sinks, self, asked._replace(sinks=None))
        return out

    def visits(self, k: Tensor, v: Tensor, asked: Asked) -> Iterator[tuple[_Visit, Asked, Tensor, Tensor]]:
        """Each rank's keys and values in turn, and what is asked of them; they are handed on while they are used."""
        own = here = torch.stack([k, v])
        for visit, following in zip(self._visits, [*self._visits[1:], None], strict=True):
            wait, taken = None, here
            if following is not None:
                taken = here.new_empty(2, following.num_rows, *k.shape[1:])
                wait = self.ring.hand_on(here if here is not own else own[:, self.num_extra :].contiguous(), taken)
            dropout = asked.dropout
            if dropout is not None and visit.keys is not None:
                dropout = replace(dropout, key_keys=visit.keys)
            yield visit, asked._replace(dropout=dropout), here[0], here[1]
            if wait is not None:
                wait()
            here = taken

    def bring_home(self, shares: Iterator[tuple[_Visit, tuple[Tensor, Tensor] | None]], like: Tensor) -> Tensor:
        """The sum of all ranks' shares of the gradients of what is this rank's own, ``[2, n, G, K]``.

        Args:
            shares: of each visiting rank's keys and values, in turn, or None where they were not seen.
            like: this rank's keys.
        """
        wide, wait, taken = precise(like), None, like
        for turn, (visit, share) in enumerate(shares):
            if wait is None:
                carried = like.new_zeros(2, visit.num_rows, *like.shape[1:], dtype=wide)
            else:
                wait()
                carried = taken
            if share is not None:
                carried[0].add_(share[0])
                carried[1].add_(share[1])
            following = self._visits[(turn + 1) % self.ring.size]
            if self.ring.size > 1:
                taken = carried.new_empty(2, following.num_rows, *like.shape[1:])
                wait = self.ring.hand_on(carried, taken)
        if wait is None:
            return carried
        wait()
        return taken


class _Travelling(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, memory: RingMemory, asked: Asked
    ) -> Tensor:
        merged = Merged(q, torch.zeros(0, 5, dtype=torch.int64), NO_WINDOW, sinks)
        for visit, wanted, keys, values in memory.visits(k, v, asked):
            if visit.seen:
                merged.add(slice(None), *attend_part(q, keys, values, visit.sight, wanted))
        out, lse = merged.result(q)
        ctx.save_for_backward(q, k, v, out, lse, sinks)
        ctx.memory, ctx.asked = memory, asked
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, sinks = ctx.saved_tensors
        grad, dq = grad.contiguous(), torch.zeros_like(q, dtype=precise(q))
        num_extra = ctx.memory.num_extra
        front = k.new_zeros(2, num_extra, *k.shape[1:], dtype=precise(k))

        def shares() -> Iterator[tuple[_Visit, tuple[Tensor, Tensor] | None]]:
            for visit, wanted, keys, values in ctx.memory.visits(k, v, ctx.asked):
                if not visit.seen:
                    yield visit, None
                    continue
                own, *theirs = attend_part_backward(grad, q, keys, values, out, lse, visit.sight, wanted)
                dq.add_(own)
                if len(theirs[0]) > visit.num_rows:  # this rank's own, behind keys that stay here
                    front.copy_(torch.stack([part[:num_extra] for part in theirs]))
                    theirs = [part[num_extra:] for part in theirs]
                yield visit, (theirs[0], theirs[1])

        home = ctx.memory.bring_home(shares(), k)
        dk, dv = (torch.cat([front, home], dim=1) if num_extra else home).to(k.dtype)
        return dq.to(q.dtype), dk, dv, sink_gradient(sinks, grad, out, lse), None, None
