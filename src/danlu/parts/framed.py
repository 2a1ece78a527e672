"""A density with the frame it sees data through: what is trained, and what people ask in the data's units."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from danlu.contracts import Outcome
from danlu.density import Density, Rows
from danlu.errors import DataError
from danlu.parts.frame import Frame
from danlu.random import fold, place_key, token_keys, uniform

Asked: TypeAlias = Tensor | np.ndarray | Sequence[Any]
"""Rows or conditions as a person has them."""
Told: TypeAlias = Asked | int | str
"""Conditions, or one for all: a class by its number or name, too."""
_BLOCK = 1 << 18
"""Numbers that go through at once where people ask."""
_CLASS = place_key("framed.class")


class Framed(nn.Module):
    """A density in the units of its data.

    Args:
        density: of rows as the network sees them.
        frame: the way there.

    Attributes:
        class_names: what its classes are called, in their order, where they have names.
    """

    def __init__(self, density: Density, frame: Frame) -> None:
        super().__init__()
        self.density, self.frame = density, frame
        self.class_names: tuple[str, ...] = ()

    def forward(self, rows: Rows, fit: Callable[[Density, Rows], Outcome]) -> Outcome:
        """What a method makes of some rows, which are given to it as its network sees them.

        Args:
            rows: in the data's units.
            fit: the method's.
        """
        density, frame = self.density, self.frame
        x, log_det = frame(rows.x, rows.keys if frame.noisy else None)
        if density.space.shape != frame.shape:
            x = x.view(len(x), *density.space.shape)
        return fit(density, replace(rows, x=x, log_det=log_det, condition=frame.condition(rows.condition)))

    @torch.no_grad()
    def log_prob(self, x: Asked, condition: Told | None = None, *, seed: int = 0) -> Tensor:
        """How likely each row is, in nats a unit of the data, ``[N]``, of the kind its `likelihood` says.

        Of whole numbers that are dequantised it is the density at the row with noise on it; its mean over noise is at
        most the logarithm of their probability.

        Args:
            x: ``[N, *shape]``.
            condition: classes ``[N]`` by number or name, or numbers ``[N, features]``, or one for all; None where there
                are none.
            seed: of the noise.

        Raises:
            DataError: when rows or conditions are not as those it was trained on: of other shapes, not finite, or
                beyond the levels that there are.
            UnsupportedError: where the density has no likelihood.
        """
        said = []
        for rows, context, keys in self._blocks(x, condition, seed):
            y, log_det = self.frame(rows, keys)
            said.append(self.density.log_prob(y.view(len(y), *self.density.space.shape), context) + log_det)
        return torch.cat(said)

    def bits_per_dim(self, x: Asked, condition: Told | None = None, *, seed: int = 0) -> Tensor:
        """-log p(x) / (D ln 2) of each row, ``[N]``, in bits.

        Of whole numbers it bounds what a code of them needs from above, as the literature has it for bytes: 8 is what
        bytes need that are alike probable.
        """
        return -self.log_prob(x, condition, seed=seed) / (math.prod(self.frame.shape) * math.log(2))

    @torch.no_grad()
    def encode(self, x: Asked, condition: Told | None = None, *, seed: int = 0) -> Tensor:
        """The noise that rows are made of, ``[N, *shape of the density's rows]``; arguments as of `log_prob`."""
        shape = self.density.space.shape
        blocks = self._blocks(x, condition, seed)
        made = [self.density.encode(self.frame(rows, k)[0].view(len(rows), *shape), c) for rows, c, k in blocks]
        return torch.cat(made)

    @torch.no_grad()
    def decode(self, z: Asked, condition: Told | None = None) -> Tensor:
        """The rows that are made of some noise, ``[N, *shape]`` in the data's units.

        Args:
            z: ``[N, ...]``.
            condition: as of `log_prob`.

        Raises:
            DataError: see `log_prob`.
        """
        noise, shape = self._tensor(z), self.density.space.shape
        if noise.shape[1:] not in (shape, self.frame.shape) or not noise.ndim:
            raise _misshapen("noise", noise, shape)
        return self._made(noise.view(len(noise), *shape), self._context(condition, len(noise)))

    @torch.no_grad()
    def sample(self, num: int, condition: Told | None = None, *, seed: int = 0) -> Tensor:
        """Rows drawn from it, ``[num, *shape]`` in the data's units.

        Row i is made of the same noise whatever `num` is, and so the same but for rounding, and, where equations are
        solved, for their tolerance.

        Args:
            num: how many.
            condition: as of `log_prob`; None of a density conditioned on classes draws these evenly.
            seed: another seed draws others.

        Raises:
            DataError: for a number below 0; see `log_prob` for conditions.
        """
        if num != int(num) or num < 0:
            raise DataError(f"{num} rows are asked for", do="Ask for a whole number of them, 0 or more.")
        num = int(num)
        keys = self._keys(num, fold(seed, "sample"))
        if condition is None and self.density.space.classes:
            condition = self.classes(num, seed=seed)
        context = self._context(condition, num)
        step = self._step()
        made = [
            self._made(self.density.noise(keys[a : a + step]), None if context is None else context[a : a + step])
            for a in range(0, num, step)
        ]
        return torch.cat(made) if made else torch.zeros(0, *self.frame.shape)

    def classes(self, num: int, *, seed: int = 0) -> Tensor:
        """The classes that `sample` draws where none is told, ``[num]``."""
        u = uniform(self._keys(num, fold(seed, "sample")), _CLASS, 1)[:, 0]
        return (u * self.density.space.classes).long()

    def _made(self, z: Tensor, context: Tensor | None) -> Tensor:
        return self.frame.inverse(self.density.decode(z, context).view(len(z), *self.frame.shape))

    def _blocks(self, x: Asked, condition: Told | None, seed: int) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        """Rows some at a time, what they are conditioned on, and keys."""
        rows = self._tensor(x)
        if not rows.ndim or rows.shape[1:] != self.frame.shape or not len(rows):
            raise _misshapen("rows", rows, self.frame.shape)
        self._refuse_beyond(rows)
        context, keys = self._context(condition, len(rows)), self._keys(len(rows), fold(seed, "asked"))
        step = self._step()
        for start in range(0, len(rows), step):
            of = slice(start, start + step)
            yield rows[of], None if context is None else context[of], keys[of]

    def _step(self) -> int:
        return max(1, _BLOCK // math.prod(self.frame.shape))

    def _keys(self, num: int, key: int) -> Tensor:
        sample = torch.arange(num)
        return token_keys(key, sample, torch.zeros_like(sample)).to(self.frame.shift.device)

    def _tensor(self, x: Asked) -> Tensor:
        """Finite numbers where the density is."""
        try:
            made = x if isinstance(x, Tensor) else torch.from_numpy(np.array(x, np.float32))
        except (TypeError, ValueError) as fault:
            raise DataError(
                f"an array of numbers is asked for ({fault})", do="Give it as numpy's or torch's."
            ) from fault
        made = made.to(self.frame.shift.device, self.frame.shift.dtype)
        finite = made.isfinite().flatten(1).all(1) if made.ndim > 1 else made.isfinite()
        if not finite.all():
            first = int(finite.logical_not().nonzero()[0]) if finite.ndim else 0
            raise DataError(f"row {first} has what is no finite number", do="Leave it out, or repair it.")
        return made

    def _refuse_beyond(self, rows: Tensor) -> None:
        """Refuse whole numbers beyond their levels, and what is between them, which have no probability."""
        levels = float(self.frame.levels)
        noisy = rows[(self.frame.noise > 0).expand_as(rows)] if self.frame.noisy else rows[:0]
        if noisy.numel() and bool((noisy != noisy.floor()).any()):
            raise DataError("it is of whole numbers, and there are others among these", do="Give the data's own units.")
        if levels and noisy.numel() and not 0 <= float(noisy.min()) <= float(noisy.max()) < levels:
            what = f"numbers from {float(noisy.min()):g} to {float(noisy.max()):g} are asked about"
            raise DataError(f"{what}, and there are {levels:g} levels, from 0", do="Give the data's own units.")

    def _context(self, condition: Told | None, num: int) -> Tensor | None:
        """Conditions as numbers that a network takes, ``[num, C]``."""
        space = self.density.space
        if condition is None:
            if space.context:
                raise DataError(f"this density is conditioned on {self._kind()}", do="Name a condition.")
            return None
        if not space.context:
            raise DataError("this density is conditioned on nothing", do="Leave the condition out.")
        if space.classes:
            told = self._numbered(condition)
            if len(told) and not 0 <= int(told.min()) <= int(told.max()) < space.classes:
                known = f" They are called {', '.join(self.class_names[:8])}." if self.class_names else ""
                raise DataError(f"there is no such class among {space.classes}", do=f"They are numbered from 0.{known}")
        else:
            told = self._tensor(condition)  # type: ignore[arg-type]
            told = told[:, None] if told.ndim == 1 and space.features == 1 else told
            if told.ndim > 2 or (told.numel() if told.ndim < 2 else told.shape[1]) != space.features:
                raise _misshapen("conditions", told, (space.features,))
            told = told.reshape(-1, space.features)
        if len(told) not in (1, num):
            raise DataError(f"{len(told)} conditions are told of {num} rows", do="Give one, or one a row.")
        told = told.to(self.frame.shift.device)
        return space.vector(self.frame.condition(told.expand(num, *told.shape[1:])))

    def _numbered(self, condition: Told) -> Tensor:
        """Classes by their numbers, ``[N]`` or ``[1]``."""
        each: Any = [condition] if isinstance(condition, str) or np.ndim(condition) == 0 else condition
        if not isinstance(each, Tensor):
            names = {name: number for number, name in enumerate(self.class_names)}
            each = np.array([names.get(one, -1) if isinstance(one, str) else one for one in each])
        told = torch.as_tensor(each).reshape(-1)
        if told.is_floating_point() and bool((told != told.floor()).any()):
            raise DataError("a class is no whole number", do="They are numbered from 0.")
        return told.long()

    def _kind(self) -> str:
        space = self.density.space
        return f"a class of {space.classes}" if space.classes else f"{space.features} numbers"


def _misshapen(what: str, given: Tensor, shape: tuple[int, ...]) -> DataError:
    one = ", ".join(map(str, shape))
    told = f"{what} of shape {tuple(given.shape)} are given, and it takes [N, {one}], N at least 1"
    return DataError(told, do="Put them into such an array.")
