"""The adapters that a model wears, and which rows of a pass each acts on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from danlu.adapter.contract import Attached, Entry, Rows
from danlu.contracts import SequenceModel
from danlu.errors import RecipeError, UnsupportedError, did_you_mean
from danlu.packed import Packed
from danlu.parts.attention_extra import InFront


class Adapters:
    """All adapters of one model.

    Which of them acts on which rows is noted as a pass enters the model, where adapters deep inside look it up. A pass
    without a gradient leaves the note as it found it, so that backward makes what was before it again as it was.

    Args:
        model: the model.

    Attributes:
        attached: the adapters by name.
        acting: of the pass at hand, by the name of each that acts: the rows it acts on; None is all of them.
        keys: one random key a row of the pass at hand, or None.
        num_rows: how many rows it has.
        soft: by the name of each that gives rows their input embeddings: these rows.
    """

    def __init__(self, model: SequenceModel) -> None:
        self.attached: dict[str, Attached] = {}
        self.acting: dict[str, Rows | None] = {}
        self.keys: Int[Tensor, " T"] | None = None
        self.num_rows = 0
        self.soft: Mapping[str, Int[Tensor, " S"]] = {}
        self._chosen: str | None = None
        self._off = False
        self._before: list[tuple[Any, ...]] = []
        self._kept: tuple[object, dict[Hashable, Tensor]] = (None, {})
        model.register_forward_pre_hook(self._enter, with_kwargs=True)
        model.register_forward_hook(self._leave, always_call=True)

    @staticmethod
    def of(model: SequenceModel) -> Adapters:
        """Those of a model, which has none before it is first asked."""
        if not isinstance(model.adapted, Adapters):
            model.adapted = Adapters(model)
        return model.adapted

    @property
    def only(self) -> Attached:
        """The one there is."""
        (attached,) = self.attached.values()
        return attached

    @property
    def ahead(self) -> int:
        """The most positions that one of them takes before a sequence's first token."""
        return max((one.ahead for one in self.attached.values()), default=0)

    @property
    def adds_rows(self) -> bool:
        """Whether one of them puts rows of its own into a pack."""
        return any(one.adds_rows for one in self.attached.values())

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within, the model computes what it did without them; for passes without a gradient.

        Raises:
            UnsupportedError: when one of them trains weights of the model itself.
        """
        if changed := [name for name, one in self.attached.items() if one.also or not one.adapter.beside]:
            what = f"the adapter '{changed[0]}' trains weights of the model itself, and cannot be switched off"
            raise UnsupportedError(what)
        before, self._off = self._off, True
        try:
            yield
        finally:
            self._off = before

    @contextmanager
    def use(self, name: str) -> Iterator[None]:
        """Within, one of them acts on every row whose segment does not say."""
        self.number(name)
        before, self._chosen = self._chosen, name
        try:
            yield
        finally:
            self._chosen = before

    def kept(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """What several layers need of the pass at hand, made by the first that asks."""
        if self._kept[0] is not self.acting:
            self._kept = (self.acting, {})
        found = self._kept[1]
        return found[key] if key in found else found.setdefault(key, make())

    def number(self, name: str) -> int:
        """What `Packed.adapter` calls one of them.

        Raises:
            RecipeError: when there is none of that name.
        """
        if name not in self.attached:
            raise RecipeError(f"the model wears no adapter '{name}'", do=did_you_mean(name, self.attached))
        return list(self.attached).index(name)

    def _enter(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        entry = Entry(**dict(zip(("packed", "readouts", "memory"), args, strict=False)), **kwargs)
        self._before.append((self.acting, self.keys, self.num_rows, self.soft))
        entry = self._led(entry)
        packed, memory = entry.packed, entry.memory
        self.acting, self.keys, self.num_rows = self._acting(packed), packed.keys, len(packed)
        self.soft = entry.soft
        if entry.extra:
            memory = InFront(entry.extra) if memory is None else memory.with_extra(entry.extra)
        return (packed, entry.readouts, memory), {}

    def _led(self, entry: Entry) -> Entry:
        """The pass as it is with what adapters put in front of sequences."""
        leading = [self.attached[name] for name in self._acting(entry.packed) if self.attached[name].ahead]
        if leading and not len(entry.packed) and entry.packed.adapter is None:
            # Asked about no row, one does as well as none, and what is in front has a gradient, as on other ranks.
            entry = replace(entry, packed=Packed.tree([[0]]).to(entry.packed.tokens.device))
        for one in sorted(leading, key=lambda one: not one.adds_rows):
            entry = one.enter(entry, self._acting(entry.packed)[one.name])
        return entry

    def _leave(self, *_: Any) -> None:
        before = self._before.pop()
        if not torch.is_grad_enabled():
            self.acting, self.keys, self.num_rows, self.soft = before

    def _acting(self, packed: Packed) -> dict[str, Rows | None]:
        if self._off:
            return {}
        if packed.adapter is not None:
            of_row = packed.adapter[packed.segment_of_row]
            acted_on = ((name, of_row == number) for number, name in enumerate(self.attached))
            return {name: _rows(chosen) for name, chosen in acted_on if chosen.any()}
        if self._chosen is None and len(self.attached) > 1:
            names = ", ".join(self.attached)
            raise RecipeError(f"the model wears several adapters ({names}), and nothing says which is to act")
        return {self._chosen or next(iter(self.attached)): None}


def _rows(acted_on: Bool[Tensor, " T"]) -> Rows | None:
    """The rows, at least one, as one run where they are one; None where they are all."""
    rows = acted_on.nonzero().squeeze(1)
    if len(rows) == len(acted_on):
        return None
    start, stop = int(rows[0]), int(rows[-1]) + 1
    return (start, stop) if len(rows) == stop - start else rows
