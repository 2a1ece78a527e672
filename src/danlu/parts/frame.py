"""From data's units to what a network sees, and back: noise on whole numbers, a logit, mean 0 and deviation 1.

    v = x + u,   s = v / levels,   w = logit(alpha + (1 - 2 alpha) s),   y = (w - shift) / scale

each step only where the data ask for it. The log-det of the way from x to y is summed up row by row, so that densities
are told **a unit of the data**: of bytes a unit is the step from one level to the next, and -log p(x) / (D ln 2) is the
bits a dimension that the literature compares, an upper bound of the code length of the whole numbers themselves.

References:
    Uria, Murray and Larochelle, 2013, "RNADE" (uniform noise), https://arxiv.org/abs/1306.0186
    Theis, van den Oord and Bethge, 2016, "A note on the evaluation of generative models" (why it is a bound),
    https://arxiv.org/abs/1511.01844
    Dinh, Sohl-Dickstein and Bengio, 2017, "Density estimation using Real NVP" (the logit),
    https://arxiv.org/abs/1605.08803
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from danlu.random import fold, place_key, token_keys, uniform

_NOISE = place_key("frame.noise")
_MARGIN = 2.0**-22
"""The share of a level that noise keeps away from the next one, for each level there are: float32 rounds by less, so
that whole numbers come back as they were."""
_BLOCK = 1 << 20
"""Numbers that are framed at once while the frame is fitted."""


class Table(Protocol):
    """Rows to fit a frame to (`danlu.data.arrays.Arrays`)."""

    def __len__(self) -> int: ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row."""
        ...

    @property
    def whole(self) -> Sequence[bool]:
        """Which columns or channels are to be dequantised."""
        ...

    @property
    def levels(self) -> int | None:
        """How many levels there are, from 0."""
        ...

    def take(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Some rows, and what they are conditioned on."""
        ...


@dataclass(frozen=True)
class _Plan:
    """What of the frame there is to do, as numbers of the host.

    Attributes:
        place: the buffers that it was read from, and how often they had been written.
        noisy: whether some column is dequantised.
        levels: as the buffer.
        alpha: as the buffer; 0 without a logit.
        spread: the log-det that is alike for all rows.
    """

    place: tuple[int, ...]
    noisy: bool
    levels: float
    alpha: float
    spread: float


class Frame(nn.Module):
    """The way between data and network; nothing but its shape until it is fitted, or its buffers are loaded.

    Args:
        shape: of a row of the data, ``(D,)`` or ``(C, H, W)``.
        features: how many numbers a row is conditioned on; these are scaled too.

    Attributes:
        noise: how wide the noise on each column or channel is: 1, or 0 where there is none.
        levels: how many levels there are, from 0; 0 where that is not known.
        alpha: of the logit; 0 where there is none.
        shift: what is taken from each column or channel.
        scale: what it is divided by.
        condition_shift: the same of the numbers a row is conditioned on.
        condition_scale: and this.
    """

    noise: Tensor
    levels: Tensor
    alpha: Tensor
    shift: Tensor
    scale: Tensor
    condition_shift: Tensor
    condition_scale: Tensor

    def __init__(self, shape: tuple[int, ...], features: int = 0) -> None:
        super().__init__()
        self.shape = shape
        broad = (shape[0], *(1,) * (len(shape) - 1))
        for name, value in {
            "noise": torch.zeros(broad),
            "levels": torch.zeros(()),
            "alpha": torch.zeros(()),
            "shift": torch.zeros(broad),
            "scale": torch.ones(broad),
            "condition_shift": torch.zeros(features),
            "condition_scale": torch.ones(features),
        }.items():
            self.register_buffer(name, value)
        self._known: _Plan | None = None

    @staticmethod
    def fitted(table: Table, *, logit: float | None = None, standardize: bool = True, seed: int = 0) -> Frame:
        """The frame of some rows.

        Args:
            table: what is trained on.
            logit: alpha, where the levels are known; None leaves the logit out.
            standardize: whether columns, or channels, get mean 0 and deviation 1.
            seed: of the noise that these are measured with.
        """
        _, condition = table.take(np.zeros(1, np.int64))
        features = condition.shape[1] if condition is not None and condition.ndim == 2 else 0
        frame = Frame(table.shape, features)
        frame.noise.view(-1).copy_(torch.tensor(table.whole, dtype=torch.float32))
        frame.levels.fill_(table.levels or 0)
        frame.alpha.fill_(logit or 0.0)
        if not standardize and not features:
            return frame
        of_rows, of_conditions = _Moments(), _Moments()
        for start in range(0, len(table), step := max(1, _BLOCK // math.prod(table.shape))):
            numbers = np.arange(start, min(start + step, len(table)))
            x, condition = table.take(numbers)
            sample = torch.from_numpy(numbers)
            keys = token_keys(fold(seed, "frame"), sample, torch.zeros_like(sample))
            y = frame(torch.from_numpy(x), keys)[0].double().transpose(0, 1).flatten(1)
            of_rows.add(y)
            if condition is not None and features:
                of_conditions.add(torch.from_numpy(condition).double().T)
        if standardize:
            of_rows.store(frame.shift, frame.scale)
        if features:
            of_conditions.store(frame.condition_shift, frame.condition_scale)
        return frame

    @staticmethod
    def of_state(state: Mapping[str, Tensor], shape: tuple[int, ...]) -> Frame:
        """The frame that was saved by its ``state_dict``."""
        frame = Frame(shape, len(state["condition_shift"]))
        frame.load_state_dict(state)
        return frame

    @property
    def noisy(self) -> bool:
        """Whether there are whole numbers, which noise is put on."""
        return self._plan().noisy

    def forward(
        self, x: Float[Tensor, "N ..."], keys: Int[Tensor, " N"] | None = None
    ) -> tuple[Float[Tensor, "N ..."], Float[Tensor, " N"]]:
        """Rows as the network sees them, and the log-det of the way there.

        Args:
            x: in the data's units.
            keys: of the noise; None puts whole numbers into the middle of their level.
        """
        plan = self._plan()
        if plan.noisy:
            x = x + self.noise * self._drawn(x, keys, plan)
        log_det = x.new_full((len(x),), plan.spread)
        if plan.alpha:
            p = torch.add(plan.alpha, x, alpha=(1 - 2 * plan.alpha) / plan.levels)
            up, down = p.log(), torch.log1p(-p)
            x = up - down
            log_det -= (up + down).flatten(1).sum(1)
        return (x - self.shift) / self.scale, log_det

    def inverse(self, y: Float[Tensor, "N ..."]) -> Float[Tensor, "N ..."]:
        """Rows in the data's units, dequantised ones as the whole numbers that noise was added to."""
        plan = self._plan()
        wide = y.double() if plan.noisy else y
        x = wide * self.scale + self.shift
        if plan.alpha:
            x = (x.sigmoid() - plan.alpha) * (plan.levels / (1 - 2 * plan.alpha))
        if plan.noisy:
            whole = x.floor()
            if plan.levels:
                whole = whole.clamp(0, plan.levels - 1)
            x = torch.where(self.noise > 0, whole, x).to(y.dtype)
        return x

    def condition(self, condition: Tensor | None) -> Tensor | None:
        """What rows are conditioned on, as the network sees it: numbers are scaled, classes are not."""
        if condition is None or not len(self.condition_shift):
            return condition
        return (condition - self.condition_shift) / self.condition_scale

    def _drawn(self, x: Tensor, keys: Tensor | None, plan: _Plan) -> Tensor:
        if keys is None:
            return torch.full_like(x, 0.5)
        if plan.levels:
            margin: Tensor | float = _MARGIN * plan.levels
        else:
            margin = (_MARGIN * (x.abs() + self.shift.abs() + 1)).clamp(max=0.25)
        u = uniform(keys, _NOISE, math.prod(self.shape)).view(x.shape).to(x.dtype)
        return u.mul_(1 - 2 * margin).add_(margin)

    def _plan(self) -> _Plan:
        """What there is to do, read from the buffers again only where they have been written."""
        held = (self.noise, self.levels, self.alpha, self.scale)
        place = tuple(number for b in held for number in (id(b), 0 if b.is_inference() else b._version))
        if self._known is None or self._known.place != place:
            levels, alpha = float(self.levels), float(self.alpha)
            each = math.prod(self.shape) // self.shape[0]
            spread = -each * float(self.scale.double().log().sum())
            if alpha:
                spread += math.prod(self.shape) * math.log((1 - 2 * alpha) / levels)
            self._known = _Plan(place, bool(self.noise.any()), levels, alpha, spread)
        return self._known


class _Moments:
    """Mean and deviation of columns that come a few rows at a time.

    References:
        Chan, Golub and LeVeque, 1983, "Algorithms for computing the sample variance",
        https://doi.org/10.1080/00031305.1983.10483115
    """

    def __init__(self) -> None:
        self.num, self.mean, self.squares = 0, torch.zeros(()).double(), torch.zeros(()).double()

    def add(self, y: Float[Tensor, "D N"]) -> None:
        num, mean = y.shape[1], y.mean(1)
        squares, total = (y - mean[:, None]).square().sum(1), self.num + num
        gap = mean - self.mean
        self.squares = self.squares + squares + gap.square() * (self.num * num / total)
        self.mean = self.mean + gap * (num / total)
        self.num = total

    def store(self, shift: Tensor, scale: Tensor) -> None:
        deviation = (self.squares / self.num).sqrt()
        shift.view(-1).copy_(self.mean)
        scale.view(-1).copy_(torch.where(deviation > 0, deviation, 1.0))
