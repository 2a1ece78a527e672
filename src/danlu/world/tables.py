"""Gymnasium's toys that follow a table of chances, many at once: the same draws, compared with sums made beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from danlu.world.cells import Cells
from danlu.world.making import make

TABULATED = frozenset(
    {
        "gymnasium.envs.toy_text.frozen_lake:FrozenLakeEnv",
        "gymnasium.envs.toy_text.cliffwalking:CliffWalkingEnv",
        "gymnasium.envs.toy_text.taxi:TaxiEnv",
    }
)
"""What Gymnasium makes them with."""


def follows_table(options: Mapping[str, Any]) -> bool:
    """Whether a toy with these options does nothing but follow a table that is the same whenever it is made."""
    random_map = options.get("map_name", "4x4") is None and options.get("desc") is None
    return not (random_map or options.get("fickle_passenger") or options.get("render_mode"))


class Tables(Cells):
    """Many of one toy.

    Args:
        num_envs: N.
        limit: steps after which an episode is cut; None for never.
        options: what the environment takes.
        env_id: see `danlu.world.making.find`.
    """

    def __init__(self, num_envs: int, limit: int | None, options: Mapping[str, Any], env_id: str) -> None:
        super().__init__(num_envs, limit, options)
        self.env_id = env_id
        env = make(env_id, options).env.unwrapped
        table: Any = env.get_wrapper_attr("P")
        self.first = np.cumsum(env.get_wrapper_attr("initial_state_distrib"))
        env.close()
        states, actions = len(table), len(table[0])
        width = max(len(table[s][a]) for s in range(states) for a in range(actions))
        self.sums = np.full((states, actions, width), -np.inf)
        self.following = np.zeros((states, actions, width), np.int64)
        self.rewards = np.zeros((states, actions, width))
        self.ends = np.zeros((states, actions, width), bool)
        for s in range(states):
            for a in range(actions):
                chances, *rest = zip(*table[s][a], strict=True)
                self.sums[s, a, : len(chances)] = np.cumsum(chances)
                for array, values in zip((self.following, self.rewards, self.ends), rest, strict=True):
                    array[s, a, : len(chances)] = values

    def start(self, chance: np.random.Generator) -> int:
        """See `Vectorized.start`."""
        return int(np.argmax(self.first > chance.random()))

    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Vectorized.advance`."""
        drawn = np.array([chance.random() for chance in self.chances])
        which = (self.sums[self.cells, actions] > drawn[:, None]).argmax(1)
        at = (self.cells, actions, which)
        self.cells = self.following[at]
        return self.rewards[at], self.ends[at]

    def alone(self) -> Tables:
        """See `Vectorized.alone`."""
        return Tables(1, self.limit, self.options, self.env_id)
