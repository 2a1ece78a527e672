"""Experience of Gymnasium's environments, as plain as can be: what the methods are tested with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box

from danlu.acting import Agent, Steps, World
from danlu.spaces import Spaces

FIELDS = ("observations", "actions", "rewards", "terminated", "truncated", "following")


class Played:
    """N environments, and all that came of them."""

    def __init__(self, make: str | Callable[[], gymnasium.Env[Any, Any]], num_envs: int = 1, seed: int = 0) -> None:
        build = (lambda: gymnasium.make(make)) if isinstance(make, str) else make
        self._envs = [build() for _ in range(num_envs)]
        self._seen = [env.reset(seed=seed + i)[0] for i, env in enumerate(self._envs)]
        self.spaces = Spaces(self._envs[0].observation_space, self._envs[0].action_space)
        self._chance = torch.Generator().manual_seed(seed)
        self._rows: list[tuple[Any, ...]] = []
        self._sums = [0.0] * num_envs
        self.returns: list[float] = []
        self.env_steps = 0

    @property
    def num_envs(self) -> int:
        return len(self._envs)

    @property
    def replay(self) -> Played:
        return self

    @property
    def model(self) -> World:
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._rows)

    def _step(self, agent: Agent, chance: torch.Generator | None) -> tuple[list[tuple[Any, ...]], dict[str, Any]]:
        choice = agent.act(torch.from_numpy(np.stack(self._seen)), chance)
        actions, box, rows = choice.actions.numpy(), self.spaces.action, []
        for i, env in enumerate(self._envs):
            a = actions[i]
            sent = np.clip(a, box.low, box.high) if isinstance(box, Box) else int(a)
            following, reward, terminated, truncated, _ = env.step(sent)
            rows.append((self._seen[i], a, np.float32(reward), terminated, truncated, following))
            self._sums[i] += float(reward)
            self._seen[i] = following
            if terminated or truncated:
                self._seen[i] = env.reset()[0]
                self.returns.append(self._sums[i])
                self._sums[i] = 0.0
        self.env_steps += len(rows)
        return rows, dict(choice.said)

    def rollout(self, agent: Agent, steps: int, *, explore: bool = True) -> Steps:
        taken = [self._step(agent, self._chance if explore else None) for _ in range(steps)]
        for rows, _ in taken:
            self._rows += rows
        said = {name: torch.stack([s[name] for _, s in taken]) for name in taken[0][1]}
        return as_steps([row for rows, _ in taken for row in rows], (steps, self.num_envs), said)

    def episode(self, agent: Agent, *, start: tuple[int, int] | None = None, longest: int) -> Steps:
        assert self.num_envs == 1
        rows: list[tuple[Any, ...]] = []
        while len(rows) < longest and not (rows and (rows[-1][3] or rows[-1][4])):
            rows += self._step(agent, self._chance)[0]
        return as_steps(rows, (len(rows), 1), {})

    def sample(self, size: int, chance: np.random.Generator) -> Steps:
        return as_steps([self._rows[i] for i in chance.integers(0, len(self._rows), size)], (size, 1), {})


def as_steps(rows: list[tuple[Any, ...]], shape: tuple[int, int], said: dict[str, torch.Tensor]) -> Steps:
    columns = (torch.from_numpy(np.stack([np.asarray(v) for v in column])) for column in zip(*rows, strict=True))
    return Steps(*(c.view(*shape, *c.shape[1:]) for c in columns), said=said)
