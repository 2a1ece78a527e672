"""What tests of densities share: weights away from where training begins, and oracles."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from danlu.density import Density, Rows, Space
from danlu.parts.network import MLP

SMALL = MLP(hidden=(16, 16), activation="tanh", initial="uniform")


def disturbed(density: Density, seed: int = 0, scale: float = 0.3) -> Density:
    """The same in float64 with every weight moved, so that nothing is where training begins."""
    chance = torch.Generator().manual_seed(seed)
    density = density.double()
    with torch.no_grad():
        for parameter in density.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=chance, dtype=torch.float64))
    return density


def rows_of(space: Space, num: int, seed: int = 0) -> Rows:
    """Rows in float64 and what they are conditioned on."""
    chance = torch.Generator().manual_seed(seed)
    x = torch.randn(num, *space.shape, generator=chance, dtype=torch.float64)
    condition = None
    if space.classes:
        condition = torch.randint(space.classes, (num,), generator=chance)
    elif space.features:
        condition = torch.randn(num, space.features, generator=chance, dtype=torch.float64)
    return Rows.of(x, condition, torch.arange(num))


def context_of(space: Space, rows: Rows) -> Tensor | None:
    vector = space.vector(rows.condition)
    return None if vector is None else vector.double()


def volumes(encode: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, context: Tensor | None) -> Tensor:
    """log |det| of the Jacobian of each row's noise, ``[N]``, row by row; by differences where no gradient is given."""
    logs = []
    for i in range(len(x)):
        told = None if context is None else context[i : i + 1]

        def one(flat: Tensor, i: int = i, told: Tensor | None = told) -> Tensor:
            return encode(flat.view(1, *x.shape[1:]), told).flatten()

        flat = x[i].flatten()
        if one(flat.clone().requires_grad_()).requires_grad:
            jacobian = torch.autograd.functional.jacobian(one, flat)
        else:
            steps = 1e-3 * torch.eye(len(flat), dtype=flat.dtype)
            jacobian = torch.stack([(one(flat + step) - one(flat - step)) / 2e-3 for step in steps], 1)
        logs.append(torch.linalg.slogdet(jacobian).logabsdet)
    return torch.stack(logs)


def mass(log_prob: Callable[[Tensor], Tensor], *, reach: float, points: int = 401) -> float:
    """The integral of a density of two numbers over a square, by the trapezoidal rule, which is exact to rounding for
    what is smooth and dies out within."""
    line = torch.linspace(-reach, reach, points, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    with torch.no_grad():
        return float(log_prob(grid).exp().sum() * (2 * reach / (points - 1)) ** 2)


def gradients(module: nn.Module, value: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*module.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(value, parameters), strict=True))
