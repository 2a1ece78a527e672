"""The gradient of where an equation leads, by z and by what f depends on, from less than all that was computed.

`retraced` keeps each step's slopes, and asks for each once more when its gradient is asked for: the gradient of what
was computed, for the price of computing it twice, in the memory of one evaluation. `adjoint` keeps the end only: with
a = dL / dz, and theta all that f depends on,

    da / dt = - a^T df / dz,      dL / dtheta = - integral a^T df / dtheta dt

are solved from the end to the start beside z (by `torchdiffeq`), which is as accurate as the tolerance.

References:
    Chen et al., 2018, "Neural ordinary differential equations" (adjoint), https://arxiv.org/abs/1806.07366
    Zhuang et al., 2020, "Adaptive checkpoint adjoint method for gradient estimation in neural ODE" (retraced),
    https://arxiv.org/abs/2006.02493
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from danlu.errors import UnsupportedError
from danlu.parts.solvers import TABLEAUS, Field, Scheme, Solved, Solver, Step, moved

_PEERS: dict[Scheme, str] = {"euler": "euler", "midpoint": "midpoint", "heun": "heun2", "dopri5": "dopri5"}
_MISSING = importlib.util.find_spec("torchdiffeq") is None


def retraced(
    solver: Solver, f: Field, z: Float[Tensor, "N ..."], start: float, end: float, weights: Sequence[Tensor]
) -> Solved:
    """`Solver.solve`, every slope asked for again for its gradient by z and by f's weights.

    Args:
        solver: how.
        f: see `Solver.solve`.
        z: see `Solver.solve`.
        start: see `Solver.solve`.
        end: see `Solver.solve`.
        weights: all that f depends on and that wants a gradient, none of it made of another.

    Raises:
        ConvergenceError: see `Solver.solve`.
    """
    if not torch.is_grad_enabled():
        return solver.solve(f, z, start, end)
    way = _Way(solver, f, tuple(weights), start, end)
    arrived: Tensor = _Retraced.apply(way, z, *weights)
    return Solved(arrived, way.evaluations)


def adjoint(
    solver: Solver, f: Field, z: Float[Tensor, "N ..."], start: float, end: float, weights: Sequence[Tensor]
) -> Solved:
    """`Solver.solve`, its gradient by z and by f's weights from the adjoint equation; through `torchdiffeq`.

    Args:
        solver: how.
        f: asked again while the gradient is made, at times and places of that solving's own.
        z: see `Solver.solve`.
        start: see `Solver.solve`.
        end: see `Solver.solve`.
        weights: all that f depends on and that wants a gradient, none of it made of another.

    Raises:
        UnsupportedError: when `torchdiffeq` is not installed.
        ConvergenceError: see `Solver.solve`.
    """
    if _MISSING:
        what, do = (
            "the adjoint equation is solved by torchdiffeq, which is not installed",
            "pip install 'danlu[density]'",
        )
        raise UnsupportedError(what, where="method.adjoint", do=f"Install it with `{do}`, or set it to false.")
    peer: Any = importlib.import_module("torchdiffeq")
    asked = 0

    def counted(t: Tensor, z: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        if solver.scheme == "dopri5" and asked > solver.most:
            raise solver.lost(float(t.detach()), "it was asked for more often than it may be")
        return f(float(t.detach()), z)

    def grid(_f: object, _z: Tensor, t: Tensor) -> Tensor:
        return torch.linspace(float(t[0]), float(t[-1]), solver.steps + 1, dtype=t.dtype, device=t.device)

    times = torch.tensor([start, end], dtype=z.dtype, device=z.device)
    options = {} if solver.scheme == "dopri5" else {"grid_constructor": grid}
    try:
        way = peer.odeint_adjoint(
            counted,
            z,
            times,
            rtol=solver.tolerance,
            atol=solver.tolerance,
            method=_PEERS[solver.scheme],
            options=options,
            adjoint_params=tuple(weights),
        )
    except AssertionError as fault:  # so it says that a step is too short, or that z is not finite
        raise solver.lost(None, str(fault).split(":", maxsplit=1)[0]) from None
    reached, asked = asked, 0  # the questions of the way back are bounded for themselves
    return Solved(way[-1], reached)


@dataclass
class _Way:
    """What is solved, and how it went.

    Attributes:
        solver: how.
        f: the field.
        weights: what it depends on.
        start: the time one begins at.
        end: the time one goes to.
        evaluations: how often f was asked.
    """

    solver: Solver
    f: Field
    weights: tuple[Tensor, ...]
    start: float
    end: float
    evaluations: int = 0


class _Retraced(torch.autograd.Function):
    """A solution whose slopes are asked for again, one by one from the last, for their gradients."""

    @staticmethod
    def forward(ctx: Any, way: _Way, z: Tensor, *_weights: Tensor) -> Tensor:
        ctx.way, ctx.taken = way, []
        there, way.evaluations = way.solver.walk(way.f, z, way.start, way.end, ctx.taken)
        return there

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        way: _Way = ctx.way
        sums = [torch.zeros_like(weight) for weight in way.weights]
        for step in reversed(ctx.taken):
            given = _pulled(way, step, given, sums)
        return None, given, *sums


def _pulled(way: _Way, step: Step, given: Tensor, sums: list[Tensor]) -> Tensor:
    """The gradient of where a step began, from that of where it led; the weights' is added to their sums."""
    tableau, (t, h, z, slopes) = TABLEAUS[way.solver.scheme], step
    back = [given * (h * weight) if weight else None for weight in tableau.weights]  # of each slope
    whole = given
    for i in range(len(slopes) - 1, -1, -1):
        of_slope = back[i]
        if of_slope is None:
            continue
        row = tableau.rows[i - 1] if i else ()
        with torch.enable_grad():
            place = moved(z, slopes[:i], row, h).detach().requires_grad_()
            slope = way.f(t + (tableau.nodes[i - 1] * h if i else 0.0), place)
        found = torch.autograd.grad(slope, (place, *way.weights), of_slope, allow_unused=True)
        for total, part in zip(sums, found[1:], strict=True):
            if part is not None:
                total.add_(part)
        if found[0] is not None:
            whole = whole + found[0]
            for j, weight in enumerate(row):
                if weight:
                    known = back[j]
                    add = found[0] * (h * weight)
                    back[j] = add if known is None else known.add_(add)
    return whole
