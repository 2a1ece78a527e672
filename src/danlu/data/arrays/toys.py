"""Distributions in the plane, drawn in any number, with the density of those that have one in closed form.

References:
    Dinh, Sohl-Dickstein and Bengio, 2017, "Density estimation using Real NVP", https://arxiv.org/abs/1605.08803
    Grathwohl et al., 2019, "FFJORD", https://arxiv.org/abs/1810.01367 (most of these shapes)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from danlu.data.arrays.rows import Arrays
from danlu.data.order import key

Drawn = tuple[Float64[np.ndarray, "N 2"], Int64[np.ndarray, " N"]]
"""Points, and the part that each belongs to."""
_GAUSSIANS = 2 * np.sqrt(2.0) * np.stack([np.cos(np.arange(8) * np.pi / 4), np.sin(np.arange(8) * np.pi / 4)], 1)
_RINGS = np.array([1.0, 2.0, 3.0, 4.0]) / np.sqrt(2.0)


@dataclass(frozen=True)
class Toy:
    """A distribution in the plane.

    Attributes:
        draw: gives so many points and the part of each, from a generator; no noise is added yet.
        parts: the name of each part.
        noise: the standard deviation of what is added to each coordinate.
    """

    draw: Callable[[int, np.random.Generator], Drawn]
    parts: tuple[str, ...]
    noise: float


def _moons(num: int, chance: np.random.Generator) -> Drawn:
    """Two half circles of radius 1, each reaching into the other."""
    part, angle = chance.integers(0, 2, num), np.pi * chance.random(num)
    upper = np.stack([np.cos(angle), np.sin(angle)], 1)
    return np.where(part[:, None] == 0, upper, [1.0, 0.5] - upper), part


def _rings(num: int, chance: np.random.Generator) -> Drawn:
    """Four circles about the origin, alike in mass."""
    part, angle = chance.integers(0, len(_RINGS), num), 2 * np.pi * chance.random(num)
    return _RINGS[part][:, None] * np.stack([np.cos(angle), np.sin(angle)], 1), part


def _spirals(num: int, chance: np.random.Generator) -> Drawn:
    """Two arms of one and a half turns, each the other turned by half a turn; denser towards the middle."""
    part, angle = chance.integers(0, 2, num), 3 * np.pi * np.sqrt(chance.random(num))
    arm = (angle / 3)[:, None] * np.stack([-np.cos(angle), np.sin(angle)], 1)
    return np.where(part[:, None] == 0, arm, -arm), part


def _checkerboard(num: int, chance: np.random.Generator) -> Drawn:
    """The eight cells of one colour of a board of four by four, ``[-4, 4]`` a side, evenly filled."""
    part, within = chance.integers(0, 8, num), chance.random((num, 2))
    row = part // 2
    column = 2 * (part % 2) + row % 2
    return 2 * (np.stack([column, row], 1) + within) - 4, part


def _eight_gaussians(num: int, chance: np.random.Generator) -> Drawn:
    """The middles of eight Gaussians on a circle; noise makes Gaussians of them."""
    part = chance.integers(0, 8, num)
    return _GAUSSIANS[part], part


TOYS: dict[str, Toy] = {
    "moons": Toy(_moons, ("upper", "lower"), 0.1),
    "rings": Toy(_rings, ("first", "second", "third", "fourth"), 0.08),
    "spirals": Toy(_spirals, ("first", "second"), 0.1),
    "checkerboard": Toy(_checkerboard, tuple(f"row {i // 2}, {i % 2}" for i in range(8)), 0.0),
    "eight_gaussians": Toy(_eight_gaussians, ("E", "NE", "N", "NW", "W", "SW", "S", "SE"), 0.5 / np.sqrt(2.0)),
}
"""All of them by name."""


def toy(name: str, rows: int, seed: int, *, noise: float | None = None, labelled: bool = False) -> Arrays:
    """Points of a toy; the same for the same name, number and seed.

    Args:
        name: one of `TOYS`.
        rows: how many.
        seed: another seed gives others.
        noise: the standard deviation of what is added to each coordinate; None is the toy's own.
        labelled: condition them on the part they belong to.

    Example:
        >>> toy("moons", 100, seed=0).x.shape
        (100, 2)
    """
    made = TOYS[name]
    chance = np.random.Generator(np.random.Philox(key=int(key("toy", name, rows, seed)[0])))
    x, part = made.draw(rows, chance)
    x = x + (made.noise if noise is None else noise) * chance.standard_normal(x.shape)
    condition, classes = (part.astype(np.int64), made.parts) if labelled else (None, ())
    return Arrays(x.astype(np.float32), condition, "toy", name, ("x", "y"), classes, whole=(False, False))


def log_density(name: str, x: Float64[np.ndarray, "N 2"], noise: float | None = None) -> Float64[np.ndarray, " N"]:
    """The log-density of eight_gaussians, or of checkerboard without noise, in nats; -inf where there is none.

    Args:
        name: which.
        x: points.
        noise: of eight_gaussians; None is the toy's own.

    Raises:
        KeyError: for a toy whose density has no closed form.
    """
    return {"eight_gaussians": _log_gaussians, "checkerboard": _log_checkerboard}[name](x, noise)


def _log_gaussians(x: np.ndarray, noise: float | None) -> np.ndarray:
    std = TOYS["eight_gaussians"].noise if noise is None else noise
    squares = ((x[:, None] - _GAUSSIANS) ** 2).sum(-1) / (2 * std**2)
    least = squares.min(1)
    within: np.ndarray = np.log(np.exp(least[:, None] - squares).mean(1)) - least - np.log(2 * np.pi * std**2)
    return within


def _log_checkerboard(x: np.ndarray, noise: float | None) -> np.ndarray:
    del noise
    cell = np.floor((x + 4) / 2)
    inside = ((cell >= 0) & (cell < 4)).all(1) & ((cell[:, 0] - cell[:, 1]) % 2 == 0)
    return np.where(inside, -np.log(32.0), -np.inf)
