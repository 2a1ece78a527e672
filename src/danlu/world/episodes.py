"""The episodes that environments are in: the seed of each, and what it came to so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from danlu.random import fold


@dataclass(frozen=True)
class Episode:
    """One that ended.

    Attributes:
        index: of its environment.
        rewards: their sum, as the environment gave them.
        length: in steps.
    """

    index: int
    rewards: float
    length: int


class Underway:
    """The episode that each of N environments is in.

    An episode's seed follows from the run's, the environment's number and the episode's.

    Args:
        num_envs: N.
        seed: the run's.

    Attributes:
        seeds: what each environment's next episode begins by.
        rewards: their sum so far, ``[N]``.
        lengths: steps so far, ``[N]``.
        discounted: what rewards are scaled by the spread of, ``[N]``.
    """

    def __init__(self, num_envs: int, seed: int) -> None:
        self._keys = [fold(seed, index) for index in range(num_envs)]
        self._numbers = [-1] * num_envs
        self.seeds = [self._seed(index, 0) for index in range(num_envs)]
        self.rewards = np.zeros(num_envs)
        self.lengths = np.zeros(num_envs, np.int64)
        self.discounted = np.zeros(num_envs)

    @property
    def begun_by(self) -> list[int]:
        """The seed that each environment's episode began by."""
        return [self._seed(index, number) for index, number in enumerate(self._numbers)]

    def begin(self, indices: list[int]) -> None:
        """In some environments the next one has begun."""
        for index in indices:
            self._numbers[index] += 1
            self.seeds[index] = self._seed(index, self._numbers[index] + 1)
        self.rewards[indices] = 0
        self.lengths[indices] = 0
        self.discounted[indices] = 0

    def add(self, rewards: np.ndarray) -> None:
        """Every environment took a step."""
        self.rewards += rewards
        self.lengths += 1

    def ended(self, indices: Sequence[int]) -> tuple[Episode, ...]:
        """Those of some environments, which have ended."""
        return tuple(Episode(i, float(self.rewards[i]), int(self.lengths[i])) for i in indices)

    def save(self) -> dict[str, Any]:
        """All of it, as JSON."""
        return {
            "episodes": list(self._numbers),
            "rewards": self.rewards.tolist(),
            "lengths": self.lengths.tolist(),
            "discounted": self.discounted.tolist(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """As it was saved."""
        self._numbers = [int(number) for number in state["episodes"]]
        self.seeds = [self._seed(index, number + 1) for index, number in enumerate(self._numbers)]
        self.rewards, self.discounted = np.array(state["rewards"], float), np.array(state["discounted"], float)
        self.lengths = np.array(state["lengths"], np.int64)

    def _seed(self, index: int, number: int) -> int:
        return fold(self._keys[index] ^ number) % 2**31  # which is fold(seed, index, number), in a third of the time
