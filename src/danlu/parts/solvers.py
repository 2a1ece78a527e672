"""Following dz/dt = f(t, z) from one time to another, in steps that are fixed or that fit a tolerance.

    euler      z' = z + h k_1,               k_1 = f(t, z)                      error O(h)
    midpoint   z' = z + h k_2,               k_2 = f(t + h/2, z + h/2 k_1)      error O(h^2)
    heun       z' = z + h/2 (k_1 + k_2),     k_2 = f(t + h, z + h k_1)          error O(h^2)
    dopri5     seven slopes a step, of which one is the next step's first; the fifth and the fourth order that they give
               differ by about the error, and the step is as long as the tolerance lets it be

All are chains of sums, so autograd finds a gradient back through them; `danlu.parts.solver_gradients` has ways that
keep less.

References:
    Dormand and Prince, 1980, "A family of embedded Runge-Kutta formulae", https://doi.org/10.1016/0771-050X(80)90013-3
    Hairer, Norsett and Wanner, 1993, "Solving ordinary differential equations I",
    https://doi.org/10.1007/978-3-540-78862-1
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from danlu.errors import ConvergenceError

Scheme: TypeAlias = Literal["euler", "midpoint", "heun", "dopri5"]
"""How a step is taken."""
Field: TypeAlias = Callable[[float, Tensor], Tensor]
"""f: a time and where one is, ``[N, ...]``, to the slope there."""


class Tableau(NamedTuple):
    """An explicit Runge-Kutta step: k_i = f(t + node_i h, z + h sum_j row_ij k_j),  z' = z + h sum_i weight_i k_i.

    Attributes:
        nodes: of the slopes behind the first, which is at t and z.
        rows: likewise.
        weights: of all slopes.
    """

    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


TABLEAUS: dict[Scheme, Tableau] = {
    "euler": Tableau((), (), (1.0,)),
    "midpoint": Tableau((1 / 2,), ((1 / 2,),), (0.0, 1.0)),
    "heun": Tableau((1.0,), ((1.0,),), (1 / 2, 1 / 2)),
    "dopri5": Tableau(
        (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0),
        (
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        ),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
}
"""What a step of each scheme is."""
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
_SMALLEST = 1e-9
"""The shortest step, of the whole way."""
_SHRINK, _GROW, _SAFETY = 0.2, 10.0, 0.9


class Step(NamedTuple):
    """A step that was taken.

    Attributes:
        t: when it began.
        h: how long it was.
        z: where it began, ``[N, ...]``.
        slopes: its k_i.
    """

    t: float
    h: float
    z: Tensor
    slopes: list[Tensor]


class Solved(NamedTuple):
    """Where one arrives.

    Attributes:
        z: there, ``[N, ...]``.
        evaluations: how often f was asked.
    """

    z: Tensor
    evaluations: int


@dataclass(frozen=True)
class Solver:
    """A way to follow an equation.

    Attributes:
        scheme: how a step is taken.
        steps: how many, of the schemes whose steps are fixed.
        tolerance: of dopri5: what a step's error may be, absolutely and relative to z, as the root of its mean square
            over a row's numbers in the row where it is largest.
        most: of dopri5: how often f may be asked.
    """

    scheme: Scheme
    steps: int = 32
    tolerance: float = 1e-5
    most: int = 10_000

    def solve(self, f: Field, z: Float[Tensor, "N ..."], start: float, end: float) -> Solved:
        """Follow z from one time to another, which may be earlier.

        Raises:
            ConvergenceError: when a step would be vanishingly short, when `most` questions do not lead to the end, or
                when what comes out is not finite.
        """
        return self.walk(f, z, start, end, None)

    def stages(
        self, f: Field, z: Float[Tensor, "N ..."], start: float, end: float, num: int
    ) -> tuple[list[Tensor], int]:
        """Where z is at about `num` times evenly spread, both ends included, and how often f was asked.

        With fixed steps these are some of the steps, so the last is what `solve` gives.
        """
        parts = num - 1 if self.scheme == "dopri5" else min(self.steps, num - 1)
        whole = self.steps if self.scheme != "dopri5" else parts
        found, evaluations = [z], 0
        for i in range(parts):
            a, b = i * whole // parts, (i + 1) * whole // parts
            part = Solver(self.scheme, b - a, self.tolerance, self.most)
            span = end - start
            z, asked = part.solve(f, z, start + span * a / whole, start + span * b / whole)
            found.append(z)
            evaluations += asked
        return found, evaluations

    def walk(self, f: Field, z: Float[Tensor, "N ..."], start: float, end: float, taken: list[Step] | None) -> Solved:
        """The same, every step that leads on being noted in `taken`."""
        if self.scheme == "dopri5":
            return self._adaptive(f, z, start, end, taken)
        h, tableau = (end - start) / self.steps, TABLEAUS[self.scheme]
        for i in range(self.steps):
            t = start + i * h
            there, slopes = _step(tableau, f, z, t, h, f(t, z))
            if taken is not None:
                taken.append(Step(t, h, z, slopes))
            z = there
        if not torch.isfinite(z).all():
            raise ConvergenceError(
                f"what {self.steps} steps of {self.scheme} arrive at is not finite",
                where="method.solver",
                do="Take more steps, or dopri5, which chooses them; a field as steep as this may also be learned with "
                "a smaller optimizer.lr.",
            )
        return Solved(z, self.steps * len(tableau.weights))

    def _adaptive(self, f: Field, z: Tensor, start: float, end: float, taken: list[Step] | None) -> Solved:
        span, t, tableau = end - start, start, TABLEAUS["dopri5"]
        h, slope, asked = span * self.tolerance**0.2, f(start, z), 1
        while True:
            last = abs(h) >= abs(end - t)
            h = end - t if last else h
            there, slopes = _step(tableau, f, z, t, h, slope)
            ahead = f(t + h, there)  # the next step's first
            asked += len(slopes)
            ratio = self._ratio(z, there, [*slopes, ahead], h)
            if ratio <= 1:
                if taken is not None:
                    taken.append(Step(t, h, z, slopes))
                z, slope, t = there, ahead, t + h
                if last:
                    return Solved(z, asked)
            grow = _SAFETY * ratio**-0.2 if ratio > 0 else _GROW  # of what is not a number it is false
            h *= min(max(grow, _SHRINK), _GROW) if ratio < float("inf") else _SHRINK
            if abs(h) < _SMALLEST * abs(span):
                finite = bool(torch.isfinite(slope).all())
                raise self.lost(t, "its steps vanish" if finite else "the field is not finite there")
            if asked > self.most:
                raise self.lost(t, f"{asked} evaluations do not lead to the end")

    @torch.no_grad()
    def _ratio(self, z: Tensor, there: Tensor, slopes: Sequence[Tensor], h: float) -> float:
        """A step's error over what it may be."""
        error = moved(torch.zeros_like(z), slopes, _ERROR, h)
        allowed = torch.maximum(z.abs(), there.abs()).add_(1.0).mul_(self.tolerance)
        return float(error.div_(allowed).square_().flatten(1).mean(1).max()) ** 0.5

    def lost(self, t: float | None, why: str) -> ConvergenceError:
        """What there is to say of a way that does not lead on.

        Args:
            t: where it ends, if that is known.
            why: in a few words.
        """
        place = "" if t is None else f" beyond t = {t:.4g}"
        return ConvergenceError(
            f"the equation was not followed{place} at a tolerance of {self.tolerance:g}: {why}",
            where="method.solver",
            do="Loosen method.tolerance or take a solver of fixed steps; a field as steep as this may also be learned "
            "with a smaller optimizer.lr.",
        )


def moved(z: Float[Tensor, "N ..."], slopes: Sequence[Tensor], row: Sequence[float], h: float) -> Tensor:
    """The sum z + h sum_i row_i k_i.

    Args:
        z: where one is.
        slopes: k, as many as the row is long.
        row: what of each is gone.
        h: how far.
    """
    sum_: Tensor | None = None
    for slope, weight in zip(slopes, row, strict=True):
        if weight:
            sum_ = torch.add(z, slope, alpha=h * weight) if sum_ is None else sum_.add_(slope, alpha=h * weight)
    return z if sum_ is None else sum_


def _step(tableau: Tableau, f: Field, z: Tensor, t: float, h: float, first: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Where a step leads, and its slopes, the first of which is known."""
    slopes = [first]
    for node, row in zip(tableau.nodes, tableau.rows, strict=True):
        slopes.append(f(t + node * h, moved(z, slopes, row, h)))
    return moved(z, slopes, tableau.weights, h), slopes
