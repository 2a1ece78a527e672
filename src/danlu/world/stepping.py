"""Environments stepped side by side: what every way of doing so shares, and the plain way, one after another.

An episode is begun by a seed and follows from its actions, so it can be had again: `replay`. One that ends is followed
by the next within the same step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium.spaces import Discrete

from danlu.errors import DanluError, RunError
from danlu.world.checks import Stacked, answer_of, brief, raised, reward_of
from danlu.world.making import make


class Moved(NamedTuple):
    """What one step of N environments came to.

    Attributes:
        observations: what each shows now, of a new episode where one ended, ``[N, ...]``.
        following: what each step led to, before that, ``[N, ...]``; the same array where none ended.
        rewards: ``[N]`` float64.
        terminated: ``[N]``.
        truncated: ``[N]``.
    """

    observations: np.ndarray
    following: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


class Stepper(ABC):
    """Environments side by side.

    Attributes:
        keeps_state: whether `save` gives all there is to know of them, so that no history needs to be kept.
    """

    keeps_state: bool = False

    @abstractmethod
    def begin(self, indices: Sequence[int], seeds: Sequence[int]) -> np.ndarray:
        """Begin a new episode in some environments; what these show, ``[len(indices), ...]``."""

    @abstractmethod
    def step(self, actions: np.ndarray, seeds: Callable[[int], int]) -> Moved:
        """Take one step in every environment, and begin a new episode where one ended.

        Args:
            actions: inside their space, ``[N, ...]``.
            seeds: the seed of an environment's next episode.
        """

    @abstractmethod
    def replay(self, index: int, seed: int, actions: np.ndarray) -> np.ndarray:
        """Begin an episode, and take its actions again, ``[T, ...]``; what the environment shows then."""

    def save(self) -> Mapping[str, Any]:
        """All there is to know of the environments as JSON, where `keeps_state`."""
        raise NotImplementedError

    def load(self, saved: Mapping[str, Any]) -> np.ndarray:
        """Put back what `save` gave; what the environments show then, ``[N, ...]``."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what is held."""
        return


class Simulators(Stepper):
    """Gymnasium environments in this process, one after another.

    Args:
        env_id: see `danlu.world.making.find`.
        options: what each environment takes.
        time_limit: see `danlu.world.making.make`.
        indices: what sentences call them.
        progress: told the place of each environment before it is stepped.
    """

    def __init__(
        self,
        env_id: str,
        options: Mapping[str, Any],
        time_limit: int | None,
        indices: Sequence[int],
        progress: Callable[[int], None] | None = None,
    ) -> None:
        made = [make(env_id, options, time_limit=time_limit) for _ in indices]
        self.envs = [each.env for each in made]
        self.name, self.limit = made[0].name, made[0].limit
        self.indices = list(indices)
        self._observations = Stacked(self.envs[0].observation_space, "observation")
        space = Stacked(self.envs[0].action_space, "action")
        self._scalar = space.shape == () and space.dtype.kind in "iu"
        self._elapsed = np.zeros(len(self.envs), np.int64)
        self._progress = progress

    def begin(self, indices: Sequence[int], seeds: Sequence[int]) -> np.ndarray:
        """See `Stepper.begin`."""
        shown = self._observations.empty(len(indices))
        for row, (index, seed) in enumerate(zip(indices, seeds, strict=True)):
            shown[row] = self._reset(index, seed)
        self._see(shown, indices, None)
        return shown

    def step(self, actions: np.ndarray, seeds: Callable[[int], int]) -> Moved:
        """See `Stepper.step`."""
        num = len(self.envs)
        following, rewards = self._observations.empty(num), np.empty(num)
        terminated, truncated = np.empty(num, bool), np.empty(num, bool)
        taken = actions.tolist() if self._scalar else actions
        shape, dtype, progress = self._observations.shape, self._observations.dtype, self._progress
        scalar = isinstance(self._observations.space, Discrete)
        index, total = 0, 0.0
        try:
            for index, env in enumerate(self.envs):
                if progress is not None:
                    progress(index)
                answer = env.step(taken[index])
                if type(answer) is not tuple or len(answer) != 5:
                    answer = answer_of(answer, self._where(index, actions))
                shown, reward, terminated[index], truncated[index], _ = answer
                if type(reward) is not float:
                    reward = reward_of(reward, self._where(index, actions))
                rewards[index] = reward
                total += reward
                fits = type(shown) is np.ndarray and shown.shape == shape and shown.dtype == dtype
                if fits or (scalar and type(shown) is int):
                    following[index] = shown
                else:
                    following[index] = self._observations.check(shown, self._where(index, actions))
        except DanluError:
            raise
        except (Exception, SystemExit) as error:
            raise self._failed("stepped", index, error, actions) from error
        self._see(following, range(num), actions)
        if not math.isfinite(total) and not np.isfinite(rewards).all():
            bad = int(np.flatnonzero(~np.isfinite(rewards))[0])
            what = f"the reward is {rewards[bad]}"
            raise RunError(what, where=self._where(bad, actions), do="Mend the environment's reward.")
        return self._end(following, rewards, terminated, truncated, seeds)

    def replay(self, index: int, seed: int, actions: np.ndarray) -> np.ndarray:
        """See `Stepper.replay`."""
        shown = self._reset(index, seed)
        try:
            for action in actions.tolist() if self._scalar else actions:
                shown = self.envs[index].step(action)[0]
        except (Exception, SystemExit) as error:
            raise self._failed("replayed", index, error, None) from error
        self._elapsed[index] = len(actions)
        return np.asarray(self._observations.check(shown, self._where(index, None)), self._observations.dtype)

    def close(self) -> None:
        """See `Stepper.close`."""
        for env in self.envs:
            env.close()

    def _end(
        self,
        following: np.ndarray,
        rewards: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
        seeds: Callable[[int], int],
    ) -> Moved:
        """Cut episodes that are long enough, and begin new ones after those that ended."""
        self._elapsed += 1
        if self.limit is not None:
            truncated |= self._elapsed >= self.limit
        ended = terminated | truncated
        if not np.count_nonzero(ended):
            return Moved(following, following, rewards, terminated, truncated)
        who = np.flatnonzero(ended).tolist()
        observations = following.copy()
        observations[who] = self.begin(who, [seeds(index) for index in who])
        return Moved(observations, following, rewards, terminated, truncated)

    def _reset(self, index: int, seed: int) -> Any:
        if self._progress is not None:
            self._progress(index)
        try:
            shown, _ = self.envs[index].reset(seed=seed)
        except DanluError:
            raise
        except (Exception, SystemExit) as error:
            raise self._failed(f"reset with seed {seed}", index, error, None) from error
        self._elapsed[index] = 0
        return self._observations.check(shown, self._where(index, None))

    def _see(self, shown: np.ndarray, indices: Sequence[int], actions: np.ndarray | None) -> None:
        bad = self._observations.wrong(shown)
        if bad is not None:
            where = self._where(indices[bad], actions)
            raise RunError(
                self._observations.describe(shown[bad]), where=where, do="Mend the environment, or its space."
            )

    def _where(self, index: int, actions: np.ndarray | None) -> str:
        place = f"{self.name}, environment {self.indices[index]}"
        if actions is None:
            return f"{place}, at its reset"
        action = actions[index] if actions[index].ndim else actions[index].item()
        return f"{place}, step {self._elapsed[index] + 1} of its episode, action {brief(action)}"

    def _failed(self, done: str, index: int, error: BaseException, actions: np.ndarray | None) -> RunError:
        return RunError(raised(error, done), where=self._where(index, actions))
