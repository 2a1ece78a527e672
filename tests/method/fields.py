"""Rows and closed forms for methods whose rows are noise carried along a field."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from danlu.density import Density, DensityMethod, Rows, Space
from danlu.random import fold


def rows_of(num: int, space: Space, *, seed: int = 0, parts: tuple[int, ...] | None = None) -> Rows:
    """Standard normal rows of a space, keyed as in an update."""
    chance = torch.Generator().manual_seed(seed)
    condition: Tensor | None = None
    if space.classes:
        condition = torch.randint(space.classes, (num,), generator=chance)
    elif space.features:
        condition = torch.randn(num, space.features, generator=chance)
    x = torch.randn(num, *space.shape, generator=chance)
    rows = Rows(x, condition, torch.arange(num), 0, parts or (num,), torch.zeros(num))
    return rows.keyed(fold(seed, 7))


def some(rows: Rows, which: slice) -> Rows:
    """Some of them, as a pack of their own."""
    x = rows.x[which]
    condition = None if rows.condition is None else rows.condition[which]
    log_det = None if rows.log_det is None else rows.log_det[which]
    return Rows(x, condition, rows.sample[which], rows.key, (len(x),), log_det)


def shaken(density: Density, *, by: float = 0.3, seed: int = 5) -> Density:
    """With weights that are not those of the start."""
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in density.parameters():
            weight.add_(torch.randn(weight.shape, generator=chance).to(weight.dtype), alpha=by)
    return density


def trained(method: DensityMethod, density: Density, draw: Callable[[int], Rows], steps: int, lr: float) -> list[float]:
    """A short training; the losses, a row."""
    rule = torch.optim.Adam(density.parameters(), lr)
    losses = []
    for step in range(steps):
        for group in rule.param_groups:
            group["lr"] = lr * min(1.0, 2 * (1 - step / steps))
        rows = draw(step)
        loss = sum(method.fit(density, rows).losses.values()) / len(rows)
        rule.zero_grad()
        loss.backward()
        rule.step()
        losses.append(loss.item())
    return losses


def grid(reach: float, num: int) -> tuple[Tensor, float]:
    """Points of a square and the area that each stands for."""
    axis = torch.linspace(-reach, reach, num)
    return torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2


class Known(nn.Module):
    """A field in closed form, with weights that it can be moved by: theta_0 + theta_1 x + theta_2 t."""

    def __init__(self, exact: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.exact = exact
        self.theta = nn.Parameter(torch.zeros(3))

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None) -> Tensor:
        time = t.view(-1, *(1,) * (x.dim() - 1))
        return self.exact(time, x) + self.theta[0] + self.theta[1] * x + self.theta[2] * time


def sums_and_slopes(method: DensityMethod, density: Density, field: Known, packs: list[Rows]) -> Tensor:
    """Of each pack its loss and the gradient of theta, a row: ``[packs, 4]``."""
    found = []
    for rows in packs:
        loss = sum(method.fit(density, rows).losses.values()) / len(rows)
        (slope,) = torch.autograd.grad(loss, field.theta)
        found.append(torch.cat([loss.detach()[None], slope]))
    return torch.stack(found).double()
