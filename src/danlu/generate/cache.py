"""Keys and values of what was seen before, for several sequences at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from danlu.packed import ROOT, Packed
from danlu.parts.attention import Asked, Backend, backend_for
from danlu.sight import Extra, Sight

FEWEST_ROWS = 64
"""How many tokens a slot has room for at first; it doubles when a sequence outgrows it."""


@dataclass
class _Slot:
    """Where a sequence is kept, and how many of its tokens are."""

    index: int
    length: int = 0


@dataclass
class _Kept:
    """One layer's keys and values, ``[slots, rows, G, K]`` each."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class _Write:
    """What this pass writes: the room there must be, each row's place in it, and keys of no token by their slot."""

    num_slots: int
    num_rows: int
    places: Int[Tensor, " T"]
    extra: Sequence[tuple[int, Extra]] = ()


_NOWHERE = _Write(0, 0, torch.zeros(0, dtype=torch.int64))


class Cache:
    """What sequences have seen so far: a `danlu.contracts.Memory` for passes without gradients.

    Every pass is a pack of one segment a sequence, its new tokens, told apart by sample id. A sample seen for the first
    time takes a free slot, and `release` frees it, so sequences come and go while others go on. New rows are written
    behind what their slot keeps and attend to all of it: their keys are one run of rows, so none is ever gathered.

    Keys of no token have slots of their own, written when they are first seen and shared by whoever sees them.

    Slots and the room in each grow as needed. Memory is set aside when the first keys come, in their dtype and on their
    device.

    Example:
        >>> cache = Cache()
        >>> cache.sight(Packed.tree([[5, 6, 7], [8]], parents=[-1, -1], samples=[0, 1])).calls.tolist()
        [[0, 3, 0, 3, 1], [3, 4, 64, 65, 0]]
        >>> cache.sight(Packed.tree([[9], [3, 4]], parents=[-1, -1], samples=[0, 1])).calls.tolist()
        [[0, 1, 0, 4, 0], [1, 3, 64, 65, 0], [1, 3, 65, 67, 1]]
    """

    def __init__(self, num_rows: int = FEWEST_ROWS) -> None:
        """Make an empty one, with room for so many tokens a slot at first."""
        self._num_rows, self._num_slots = num_rows, 0
        self._slots: dict[int, _Slot] = {}
        self._free: list[int] = []
        self._extra: Sequence[Extra] = ()
        self._extra_slots: dict[tuple[str, int], int] = {}
        self._layers: dict[int, _Kept] = {}
        self._write = _NOWHERE

    def length(self, sample: int) -> int:
        """How many tokens of a sequence are kept."""
        return self._slots[sample].length if sample in self._slots else 0

    def release(self, sample: int) -> None:
        """Forget a sequence; its slot is free for another."""
        self._free.append(self._slots.pop(sample).index)

    def with_extra(self, extra: Sequence[Extra]) -> Cache:
        """See `danlu.contracts.Memory`."""
        self._extra = extra
        return self

    def sight(self, packed: Packed) -> Sight:
        """Who sees whom when these rows attend to what is kept of their sequences and to themselves.

        From here on the rows count as kept; every layer has to attend next.

        Raises:
            ValueError: when a segment continues another, or two belong to one sample.
        """
        slots, (seen, written) = self._slots_of(packed), self._slots_of_extra()
        lengths = packed.cu_seqlens.diff().tolist()
        needed = [slot.length + n for slot, n in zip(slots, lengths, strict=True)]
        while self._num_rows < max([*needed, *(len(one.offsets) for one, _, _ in seen)], default=0):
            self._num_rows *= 2
        first, end = (torch.zeros(self._num_slots, self._num_rows, dtype=torch.int64) for _ in range(2))
        calls, places, offsets = [], [], []
        for slot, a, n, causal in zip(slots, packed.bounds, lengths, packed.causal.tolist(), strict=False):
            past, start = slot.length, slot.index * self._num_rows
            new = start + past
            if n == 1:
                calls.append([a, a + 1, start, new + 1, 0])
            else:
                calls += [[a, a + n, start, new, 0]] if past else []
                calls.append([a, a + n, new, new + n, int(causal)])
            slot.length += n
            first[slot.index, : slot.length] = a
            end[slot.index, : slot.length] = a + n
            if causal:
                first[slot.index, past : slot.length] = torch.arange(a, a + n)
            places.append(torch.arange(new, new + n))
            offsets.append(torch.arange(past, past + n))
        key_offset = torch.arange(self._num_rows).repeat(self._num_slots, 1)
        for one, (q0, q1), index in seen:
            num, start = len(one.offsets), index * self._num_rows
            calls.append([q0, q1, start, start + num, 0])
            first[index, :num], end[index, :num], key_offset[index, :num] = q0, q1, one.offsets
        device, nothing = packed.tokens.device, [torch.zeros(0, dtype=torch.int64)]
        self._write = _Write(self._num_slots, self._num_rows, torch.cat(places or nothing).to(device), written)
        table, flat = torch.tensor(calls, dtype=torch.int64).reshape(-1, 5), key_offset.flatten()
        return Sight(table, first.flatten(), end.flatten(), torch.cat(offsets or nothing), flat).to(device)

    def _slots_of(self, packed: Packed) -> list[_Slot]:
        samples = packed.sample.tolist()
        if (packed.parent != ROOT).any() or len(set(samples)) < len(samples):
            raise ValueError("a pass with a memory has one segment a sequence, and none continues another")
        for sample in samples:
            if sample not in self._slots:
                self._slots[sample] = _Slot(self._free_slot())
        return [self._slots[sample] for sample in samples]

    def _slots_of_extra(self) -> tuple[list[tuple[Extra, tuple[int, int], int]], list[tuple[int, Extra]]]:
        """The slot of what each run of rows sees of no token, and those of them that are to be written."""
        seen, written = [], []
        for one in self._extra:
            for number, run in enumerate(one.runs):
                if (one.name, number) not in self._extra_slots:
                    self._extra_slots[one.name, number] = self._free_slot()
                    written.append((self._extra_slots[one.name, number], one))
                seen.append((one, run, self._extra_slots[one.name, number]))
        self._extra = ()
        return seen, written

    def _free_slot(self) -> int:
        if not self._free:
            self._free.append(self._num_slots)
            self._num_slots += 1
        return self._free.pop()

    def backend(self, layer: int) -> Backend:
        """How a layer attends: its rows' keys and values are kept, then all slots' are attended to, in place."""
        return partial(self._attend, layer)

    def _attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sight: Sight,
        asked: Asked,
    ) -> Tensor:
        keys, values = self._extend(layer, k, v)
        return backend_for(q.device)(q, keys, values, sight, asked)

    def _extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write a layer's keys and values of these rows, ``[T, G, K]``; give all slots', ``[Tk, G, K]``."""
        kept = self._layers.get(layer)
        if kept is None or kept.keys.shape[:2] != (self._write.num_slots, self._write.num_rows):
            before = (None, None) if kept is None else (kept.keys, kept.values)
            grown = (self._room(new, old) for new, old in zip((keys, values), before, strict=True))
            kept = self._layers[layer] = _Kept(*grown)
        flat = (kept.keys.flatten(0, 1), kept.values.flatten(0, 1))
        for room, new in zip(flat, (keys, values), strict=True):
            room.index_copy_(0, self._write.places, new.detach())
        for slot, one in self._write.extra:
            for room, new in zip((kept.keys, kept.values), one.values[layer], strict=True):
                room[slot, : len(new)] = new.detach()
        return flat

    def _room(self, like: Tensor, before: Tensor | None) -> Tensor:
        """Room for all slots, holding what was kept; rows not written yet are zero, since no value may be a NaN."""
        room = like.new_zeros(self._write.num_slots, self._write.num_rows, *like.shape[1:])
        if before is not None:
            room[: before.shape[0], : before.shape[1]] = before
        return room
