"""One environment by itself, whose every answer is held against its space."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from gymnasium.error import DependencyNotInstalled

from danlu.errors import DanluError, RunError, UnsupportedError
from danlu.world.checks import Actions, Stacked, answer_of, brief, raised, reward_of
from danlu.world.finite import start_at
from danlu.world.making import Made

T = TypeVar("T")


class Single:
    """One environment; sentences say at which step of its episode it failed, and after which action.

    Args:
        made: the environment.
        limit: steps after which an episode is cut; None for never.
    """

    def __init__(self, made: Made, limit: int | None) -> None:
        self._env, self._name, self._limit = made.env, made.name, limit
        self._shown = Stacked(made.env.observation_space, "observation")
        self._actions = Actions(made.env.action_space, 1)
        self._steps = 0

    def begin(self, seed: int, state: int | None = None) -> np.ndarray:
        """Begin an episode, in a finite world with a state where one is given; what the environment shows.

        Raises:
            RunError: where the environment fails.
            UnsupportedError: where it cannot be put into a state.
        """
        self._steps, where = 0, f"{self._name}, at its reset"

        def reset() -> Any:
            return self._env.reset(seed=seed)[0] if state is None else start_at(self._env, state, seed=seed)

        return self._seen(self._asked(reset, f"reset with seed {seed}", where), where)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        """Take one step: what the environment shows then, its reward, whether it ended the episode, whether it was cut.

        Raises:
            RunError: for an action outside its space, and where the environment fails.
        """
        self._steps += 1
        where = f"{self._name}, step {self._steps} of its episode"
        taken = self._actions.array(action[None], where)[0]
        where += f", action {brief(taken if taken.ndim else taken.item())}"

        def step() -> tuple[Any, float, bool, bool]:
            answer = answer_of(self._env.step(taken if taken.ndim else taken.item()), where)
            shown, reward, terminated, truncated, _ = answer
            return shown, reward_of(reward, where), bool(terminated), bool(truncated)

        shown, reward, terminated, truncated = self._asked(step, "stepped", where)
        if not math.isfinite(reward):
            raise RunError(f"the reward is {reward}", where=where, do="Mend the environment's reward.")
        truncated = not terminated and (truncated or self._steps == self._limit)
        return self._seen(shown, where), reward, terminated, truncated

    def close(self) -> None:
        """Let go of it."""
        self._env.close()

    def _seen(self, shown: Any, where: str) -> np.ndarray:
        seen = np.asarray(self._shown.check(shown, where), self._shown.dtype)
        if self._shown.wrong(seen[None]) is not None:
            raise RunError(self._shown.describe(seen), where=where, do="Mend the environment, or its space.")
        return seen

    def _asked(self, ask: Callable[[], T], done: str, where: str) -> T:
        try:
            return ask()
        except DanluError:
            raise
        except DependencyNotInstalled as error:
            raise UnsupportedError(f"'{self._name}' needs a package that is missing: {error}", where=where) from error
        except (Exception, SystemExit) as error:
            raise RunError(raised(error, done), where=where) from error
