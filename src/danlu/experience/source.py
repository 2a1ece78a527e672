"""What comes of acting: the steps that an agent takes in its environments, and what is remembered of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from danlu.acting import Agent, Replay, Steps, World
from danlu.errors import UnsupportedError
from danlu.experience.replay import Ring
from danlu.random import fold
from danlu.spaces import Spaces
from danlu.world.environments import Environments
from danlu.world.finite import world_of
from danlu.world.making import make
from danlu.world.single import Single


@dataclass(frozen=True)
class Tally:
    """What has come since it was asked last.

    Attributes:
        env_steps: steps of all environments.
        returns: sums of the rewards of the episodes that ended.
        lengths: how many steps each of them had.
    """

    env_steps: int
    returns: Sequence[float]
    lengths: Sequence[int]


class Acted:
    """Steps that an agent takes; each draw is of all that a turn of its method will take.

    Args:
        environments: where it acts; None where a method learns from no environment.
        env_id: what these are.
        options: what each takes.
        seed: what it explores by follows from it.
        budget: steps of all environments, at most; None is no bound.
        remembers: steps that `replay` keeps.
        folder: where these are kept; None is in memory only.
    """

    def __init__(
        self,
        environments: Environments | None,
        env_id: str = "",
        options: Mapping[str, Any] | None = None,
        *,
        seed: int,
        budget: int | None,
        remembers: int,
        folder: Path | None,
    ) -> None:
        self._environments, self._seed, self._budget = environments, seed, budget
        self.env_steps = 0
        self._told = 0
        self._asked = 0
        self._ring: Ring | None = None
        self._ended: list[tuple[float, int]] = []
        self._env_id, self._options = env_id, dict(options or {})
        self._one: Single | None = None
        self._world: World | None = None
        if remembers and environments is not None:
            self._ring = Ring(environments.spaces, remembers, folder)

    @property
    def environments(self) -> Environments:
        """Where it acts.

        Raises:
            UnsupportedError: when there is nowhere.
        """
        if self._environments is None:
            raise UnsupportedError("the method learns from acting, and there is no world", do="Set data.env.")
        return self._environments

    @property
    def spaces(self) -> Spaces:
        """What one environment shows and takes."""
        return self.environments.spaces

    @property
    def num_envs(self) -> int:
        """How many run side by side."""
        return self.environments.num_envs

    @property
    def replay(self) -> Replay:
        """The steps so far, as many as are kept."""
        assert self._ring is not None, "the method remembers nothing"
        return self._ring

    @property
    def model(self) -> World:
        """All there is to know of a finite world."""
        if self._world is None:
            self._world = world_of(self._env_id, self._options)
        return self._world

    def rollout(self, agent: Agent, steps: int, *, explore: bool = True) -> Steps:
        """The agent's next steps in every environment, on from where these are, ``[steps, N]``."""
        environments, spaces = self.environments, self.spaces
        chance = self._chance() if explore else None
        rows = _Rows(steps)
        for t in range(steps):
            seen = environments.observations
            choice = agent.act(torch.from_numpy(seen), chance)
            rows.put(t, "observations", seen)
            rows.put(t, "actions", choice.actions.numpy())
            for name, said in choice.said.items():
                rows.put(t, f"said/{name}", said.numpy())
            came = environments.step(spaces.possible(choice.actions.numpy()))
            rows.put(t, "rewards", came.rewards)
            rows.put(t, "terminated", came.terminated)
            rows.put(t, "truncated", came.truncated)
            rows.put(t, "following", came.following)
            self._ended += [(episode.rewards, episode.length) for episode in came.ended]
        self.env_steps += steps * environments.num_envs
        if self._ring is not None:
            self._ring.add({name: rows.flat(name) for name in _REMEMBERED})
        return rows.steps()

    def episode(self, agent: Agent, *, start: tuple[int, int] | None = None, longest: int) -> Steps:
        """One whole episode of an environment of its own, ``[T, 1]``, as long as it is or `longest`."""
        cut = self.environments.limit
        if self._one is None:
            self._one = Single(make(self._env_id, self._options), cut)
        seed = fold(self._seed, "episode", self._asked) % 2**31
        self._asked += 1
        seen = self._one.begin(seed, None if start is None else start[0])
        limit = longest if cut is None else min(longest, cut)
        chance, rows, ended, t, total = self._chance(), _Rows(limit), False, 0, 0.0
        while t < limit and not ended:
            shown = self._shown(seen[None])
            actions = agent.act(torch.from_numpy(shown), chance).actions.numpy()
            if start is not None and t == 0:
                actions = np.full_like(actions, start[1])
            seen, reward, terminated, truncated = self._one.step(np.asarray(self.spaces.possible(actions)[0]))
            truncated = not terminated and (truncated or t + 1 == limit)
            rows.put(t, "observations", shown)
            rows.put(t, "actions", actions)
            rows.put(t, "rewards", np.array([reward]))
            rows.put(t, "terminated", np.array([terminated]))
            rows.put(t, "truncated", np.array([truncated]))
            rows.put(t, "following", self._shown(seen[None]))
            t, total, ended = t + 1, total + reward, terminated or truncated
        self.env_steps += t
        self._ended.append((total, t))
        return rows.steps(t)

    def _shown(self, observations: np.ndarray) -> np.ndarray:
        """As the agent sees them."""
        known = self.environments.statistics
        return observations if known.observations is None else known.normal(observations)

    def tally(self) -> Tally:
        """What has come since this was asked last."""
        ended, self._ended = self._ended, []
        steps, self._told = self.env_steps - self._told, self.env_steps
        return Tally(steps, [r for r, _ in ended], [n for _, n in ended])

    def _chance(self) -> torch.Generator:
        """Chance of the steps that come next, a function of how many came before."""
        return torch.Generator().manual_seed(fold(self._seed, "act", self.env_steps) % 2**63)

    def draw(self) -> Sequence[Any]:
        """The source itself, of which a method takes what it wants."""
        return [self]

    @property
    def exhausted(self) -> bool:
        """Whether all steps are taken that may be."""
        return self._budget is not None and self.env_steps >= self._budget

    @property
    def epochs(self) -> float:
        """The share of the steps that are taken, where they are bounded."""
        return 0.0 if self._budget is None else self.env_steps / self._budget

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, as JSON: an episode is its seed and its actions."""
        return {
            "env_steps": self.env_steps,
            "asked": self._asked,
            "environments": None if self._environments is None else self._environments.state_dict(),
            "remembered": None if self._ring is None else self._ring.count,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.env_steps = self._told = int(state["env_steps"])
        self._asked = int(state["asked"])
        self._ended = []
        if self._environments is not None:
            self._environments.load_state_dict(state["environments"])
        if self._ring is not None:
            self._ring.go_back(int(state["remembered"]))

    def close(self) -> None:
        """End what runs in the background."""
        if self._environments is not None:
            self._environments.close()
        if self._one is not None:
            self._one.close()


_REMEMBERED = ("observations", "actions", "rewards", "terminated", "truncated", "following")


class _Rows:
    """Rows of steps as they come, in arrays made when the first is there."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._arrays: dict[str, np.ndarray] = {}

    def put(self, t: int, name: str, values: np.ndarray) -> None:
        if name not in self._arrays:
            dtype = np.float32 if name == "rewards" else values.dtype
            self._arrays[name] = np.empty((self._length, *values.shape), dtype)
        self._arrays[name][t] = values

    def flat(self, name: str) -> np.ndarray:
        """All of them in the order of time, ``[T N, ...]``."""
        array = self._arrays[name]
        return array.reshape(-1, *array.shape[2:])

    def steps(self, length: int | None = None) -> Steps:
        def rows(name: str) -> Tensor:
            return torch.from_numpy(self._arrays[name][:length])

        said = {name.removeprefix("said/"): rows(name) for name in self._arrays if name.startswith("said/")}
        return Steps(**{name: rows(name) for name in _REMEMBERED}, said=said)
