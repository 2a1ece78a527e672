"""Fixed features of a state: what linear methods weigh.

A state is first a point x of the unit cube [0, 1]^d: an observation of numbers by its bounds, a state's number by its
place on a grid whose sides are given. Then

    one_hot     1 for the state itself, else 0                                  as many as there are states
    polynomial  products of powers of the coordinates of 2 x - 1, of degree at most `order`
    fourier     cos(pi c . x) for integer c in {0, ..., order}^d                (order + 1)^d
    tile        1 for the tile that x lies in, of each of `tilings` grids, each shifted by a share of a tile

References:
    Konidaris, Osentoski and Thomas, 2011, "Value function approximation in reinforcement learning using the Fourier
    basis", https://doi.org/10.1609/aaai.v25i1.7903
    Sutton and Barto, 2018, "Reinforcement learning", section 9.5, http://incompleteideas.net/book/the-book-2nd.html
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal

import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from pydantic import Field

from danlu.config import Config
from danlu.errors import UnsupportedError

_MOST = 100_000
"""Features; more are a mistake in `order`."""


class Features(Config):
    """What is seen of a state, as numbers that a weight each is learnt for."""

    kind: Literal["one_hot", "polynomial", "fourier", "tile"] = "fourier"
    """`one_hot` (a finite world, as a table), `polynomial`, `fourier`, or `tile`."""
    order: int = Field(3, ge=0)
    """The highest degree (polynomial), the highest frequency of an axis (fourier), or tiles along an axis (tile)."""
    tilings: int = Field(4, ge=1)
    """Grids of tiles, each shifted against the others (tile)."""
    shape: tuple[int, ...] = ()
    """The sides of the grid that a state's number is a place of, row by row; empty for a line."""


class FeatureMap:
    """Features of the observations of a space.

    Args:
        config: which.
        space: what environments show.

    Attributes:
        num: how many features there are, F.

    Raises:
        UnsupportedError: where a space has no bounds, or is not the grid it is said to be.
    """

    def __init__(self, config: Features, space: Any) -> None:
        self.config, self.space = config, space
        self._sides = np.array(_sides(config, space))
        self._powers = _powers(config, len(self._sides) if isinstance(space, Discrete) else self._axes())
        self.num = self._count()
        if self.num > _MOST:
            what = f"there would be {self.num} features"
            raise UnsupportedError(what, where="method.features.order", do="Let the order be smaller.")

    def _axes(self) -> int:
        return len(self._sides) if isinstance(self.space, MultiDiscrete) else int(np.prod(self.space.shape))

    def _count(self) -> int:
        if self.config.kind == "one_hot":
            return int(self._sides.prod())
        if self.config.kind == "tile":
            return self.config.tilings * (self.config.order + 1) ** self._powers.shape[1]
        return len(self._powers)

    def points(self, observations: np.ndarray) -> np.ndarray:
        """Where in the unit cube observations lie, ``[N, d]``."""
        if isinstance(self.space, Box):
            low, high = self.space.low.reshape(-1).astype(np.float64), self.space.high.reshape(-1).astype(np.float64)
            return np.clip((observations.reshape(len(observations), -1) - low) / (high - low), 0.0, 1.0)
        return self._coordinates(observations) / np.maximum(self._sides - 1, 1)

    def _coordinates(self, observations: np.ndarray) -> np.ndarray:
        if isinstance(self.space, MultiDiscrete):
            return observations.reshape(len(observations), -1) - self.space.start.reshape(-1)
        return np.stack(np.unravel_index(observations - int(self.space.start), tuple(self._sides)), -1)

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        """The features of observations, ``[N, F]`` float64."""
        kind = self.config.kind
        if kind == "one_hot":
            places = np.ravel_multi_index(tuple(self._coordinates(observations).T), tuple(self._sides))
            return np.eye(self.num)[places]
        points = self.points(observations)
        if kind == "fourier":
            return np.cos(math.pi * points @ self._powers.T)
        if kind == "polynomial":
            return (((2 * points - 1)[:, None, :]) ** self._powers).prod(-1)
        return self._tiles(points)

    def _tiles(self, points: np.ndarray) -> np.ndarray:
        config, axes = self.config, points.shape[1]
        each = (config.order + 1) ** axes
        found = np.zeros((len(points), self.num))
        for tiling in range(config.tilings):
            moved = np.floor(points * config.order + tiling / config.tilings).astype(np.int64)
            tiles = np.minimum(moved, config.order)
            place = np.ravel_multi_index(tuple(tiles.T), (config.order + 1,) * axes)
            found[np.arange(len(points)), tiling * each + place] = 1.0
        return found


def _sides(config: Features, space: Any) -> tuple[int, ...]:
    """The sides of a finite world's grid; none where observations are numbers."""
    if isinstance(space, Discrete):
        shape = config.shape or (int(space.n),)
        if math.prod(shape) != space.n:
            what = f"a grid of {' x '.join(map(str, shape))} has not {space.n} states"
            raise UnsupportedError(what, where="method.features.shape", do="Give the world's sides.")
        return shape
    if isinstance(space, MultiDiscrete):
        return tuple(int(side) for side in space.nvec.reshape(-1))
    if config.kind == "one_hot" or not isinstance(space, Box) or not space.is_bounded():
        what = f"{space} has no {'end of states' if config.kind == 'one_hot' else 'bounds'} to make features by"
        raise UnsupportedError(what, where="method.features", do="Choose a world with bounds, or a network's method.")
    return ()


def _powers(config: Features, axes: int) -> np.ndarray:
    """The exponents or frequencies of each feature, ``[F, d]``."""
    if config.kind in ("one_hot", "tile"):
        return np.zeros((0, axes), np.int64)
    if (config.order + 1) ** axes > 100 * _MOST:
        what = f"{axes} coordinates to the order {config.order} are too many features"
        raise UnsupportedError(what, where="method.features.order", do="Let the order be smaller.")
    every = np.array(list(itertools.product(range(config.order + 1), repeat=axes)), np.int64)
    return every[every.sum(1) <= config.order] if config.kind == "polynomial" else every
