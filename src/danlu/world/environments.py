"""N environments of one kind side by side, which can be saved in the middle of an episode and go on to the bit.

An episode is a seed and the actions since: the seed follows from the run's seed, the environment's number and the
episode's number, so that what an environment does depends on no other. Saved, they are those seeds and actions; loaded,
the actions are taken again in fresh environments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from gymnasium.spaces import Box

from danlu.errors import CheckpointError, RecipeError
from danlu.spaces import Spaces
from danlu.world.checks import Actions, Stacked
from danlu.world.episodes import Episode, Underway
from danlu.world.history import History, from_text, to_text
from danlu.world.making import make
from danlu.world.normalizing import Statistics
from danlu.world.starting import How, start


class Stepped(NamedTuple):
    """What one step of N environments came to.

    Attributes:
        observations: what each shows now, of a new episode where one ended, ``[N, ...]``.
        following: what each step led to, before that, ``[N, ...]``; the same array where none ended.
        rewards: ``[N]`` float64.
        terminated: ``[N]``.
        truncated: ``[N]``.
        ended: the episodes that did.
    """

    observations: np.ndarray
    following: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    ended: tuple[Episode, ...]


class Environments:
    """N environments of one kind side by side.

    Args:
        env_id: Gymnasium's id, "gridworld", or "module:Id" of an environment that a module registers.
        num_envs: N.
        seed: all that is random in them follows from it.
        options: what the environment takes.
        workers: processes to step them in, for slow simulators; 0 for this one.
        normalize_observations: whether observations are brought to mean 0 and variance 1 by what was seen so far.
        normalize_rewards: whether rewards are divided by the spread of discounted returns seen so far.
        gamma: their discount.
        time_limit: steps after which an episode is cut; None for what the environment is registered with.
        timeout: seconds an environment in a process of its own may take for a step.
        statistics: another's, to be used and left as they are, as for evaluation; None to gather one's own.
        vectorize: whether environments known here are stepped all at once, which changes no result.

    Attributes:
        spaces: what one environment shows and takes, as an agent has it.
        limit: steps after which its episodes are cut; None where only the environment ends them.
        name: what Gymnasium knows it by.
        statistics: what is known of observations and rewards.

    Raises:
        RecipeError: for an unknown id, and for what cannot be meant.
        UnsupportedError: for a package that is missing, or a space without arrays.

    Example:
        >>> with Environments("CartPole-v1", 2, seed=7) as environments:
        ...     shown = environments.reset()
        ...     environments.step(np.array([0, 1])).rewards
        array([1., 1.])
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int = 1,
        *,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
        workers: int = 0,
        normalize_observations: bool = False,
        normalize_rewards: bool = False,
        gamma: float | None = None,
        time_limit: int | None = None,
        timeout: float = 120.0,
        statistics: Statistics | None = None,
        vectorize: bool = True,
    ) -> None:
        if num_envs < 1 or workers < 0 or (time_limit is not None and time_limit < 1):
            raise RecipeError("there is at least one environment, and an episode has at least one step", where="data")
        if statistics is not None:
            normalize_observations = statistics.observations is not None
        elif normalize_rewards and gamma is None:
            raise RecipeError("rewards are normalised by discounted returns, and there is no discount", where="data")
        self._options = dict(options or {})
        one = make(env_id, self._options, time_limit=time_limit)
        self.name, self.num_envs, self._seed = one.name, num_envs, seed
        self.limit = one.limit
        observation, action = one.env.observation_space, one.env.action_space
        one.env.close()
        self._shown = Stacked(observation, "observation")
        self._actions = Actions(action, num_envs)
        if normalize_observations:
            if not isinstance(observation, Box):
                raise RecipeError(f"only numbers can be normalised, and {self.name} shows {observation}", where="data")
            observation = Box(-np.inf, np.inf, observation.shape, np.float32)
        self.spaces = Spaces(observation, action)
        self._frozen = statistics is not None
        shape = self._shown.shape if normalize_observations else None
        own = Statistics(shape, gamma if normalize_rewards else None)
        self.statistics = own if statistics is None else statistics
        how = How(workers, timeout, vectorize)
        self._stepper = start(env_id, num_envs, self._options, self.limit, how)
        self._history = None if self._stepper.keeps_state else History(self._actions, num_envs)
        self._underway = Underway(num_envs, seed)
        self._raw: np.ndarray | None = None
        self._current = self._shown.empty(0)

    def __enter__(self) -> Environments:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def observations(self) -> np.ndarray:
        """What each environment shows now, ``[N, ...]``; episodes begin if none has."""
        return self.reset() if self._raw is None else self._current

    def reset(self) -> np.ndarray:
        """Begin a new episode in every environment.

        Returns:
            what each shows, ``[N, ...]``.

        Raises:
            RunError: where an environment fails, with its number.
        """
        everyone = list(range(self.num_envs))
        self._raw = self._stepper.begin(everyone, self._underway.seeds)
        self._begun(everyone)
        self._current = self._normal(self._raw)
        return self._current

    def step(self, actions: np.ndarray) -> Stepped:
        """Take one step in every environment; a new episode begins where one ended.

        Args:
            actions: inside their space, ``[N, ...]``.

        Raises:
            RunError: for an action outside its space, and where an environment fails or gives what it may not, with
                its number, the step and the action.
        """
        if self._raw is None:
            self.reset()
        taken = self._actions.array(actions, self.name)
        moved = self._stepper.step(taken, self._underway.seeds.__getitem__)
        if self._history is not None:
            self._history.add(taken)
        self._underway.add(moved.rewards)
        self._raw = moved.observations
        rewards = self._scaled(moved.rewards, moved.terminated)
        following = observations = self._normal(moved.following)
        ended: tuple[Episode, ...] = ()
        if moved.observations is not moved.following:
            who = np.flatnonzero(moved.terminated | moved.truncated).tolist()
            ended = self._underway.ended(who)
            self._begun(who)
            observations = following.copy()
            observations[who] = self._normal(moved.observations[who])
        self._current = observations
        return Stepped(observations, following, rewards, moved.terminated, moved.truncated, ended)

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on from here to the bit, as JSON."""
        begun = self._raw is not None
        return {
            **self._described(),
            **self._underway.save(),
            "actions": None if self._history is None else self._history.save(),
            "state": self._stepper.save() if self._stepper.keeps_state else None,
            "raw": to_text(self._raw) if self._raw is not None else None,
            "current": to_text(self._current) if begun else None,
            "statistics": None if self._frozen else self.statistics.save(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken, in environments made by the same arguments.

        Raises:
            CheckpointError: where it is of other environments, or where these do not do the same again.
        """
        for name, value in self._described().items():
            if state[name] != value:
                what = f"the environments were saved with {name} = {state[name]!r}, and this run has {value!r}"
                raise CheckpointError(what, do="Resume with the recipe they ran with.")
        self._underway.load(state)
        if state["statistics"] is not None and not self._frozen:
            self.statistics.load(state["statistics"])
        if state["raw"] is None:
            self._raw = None
            return
        self._raw, self._current = from_text(state["raw"]), from_text(state["current"])
        again = self._again(state)
        if again.dtype != self._raw.dtype or again.tobytes() != self._raw.tobytes():
            different = [i for i in range(self.num_envs) if again[i].tobytes() != self._raw[i].tobytes()]
            what = f"the same seed and actions led environment {different[0]} of {self.name} to another observation"
            do = "See whether its options or its version changed, or whether it draws chance of its own."
            raise CheckpointError(what, do=do)

    def close(self) -> None:
        """Let go of the environments, and of their processes."""
        self._stepper.close()

    def _described(self) -> dict[str, Any]:
        options = json.dumps(self._options, sort_keys=True, default=str)
        return {"env": self.name, "num_envs": self.num_envs, "seed": self._seed, "options": options}

    def _again(self, state: Mapping[str, Any]) -> np.ndarray:
        if self._history is None:
            if state["state"] is None:
                raise CheckpointError("the environments were saved another way", do="Resume as they ran.")
            return self._stepper.load(state["state"])
        if state["actions"] is None:
            raise CheckpointError("the environments were saved another way", do="Resume as they ran.")
        self._history.load(state["actions"])
        shown = self._shown.empty(self.num_envs)
        for index, seed in enumerate(self._underway.begun_by):
            shown[index] = self._stepper.replay(index, seed, self._history.of(index))
        return shown

    def _begun(self, indices: list[int]) -> None:
        self._underway.begin(indices)
        if self._history is not None:
            self._history.begin(indices)

    def _normal(self, shown: np.ndarray) -> np.ndarray:
        seen = self.statistics.observations
        if seen is None:
            return shown
        if not self._frozen:
            seen.see(shown)
        return self.statistics.normal(shown)

    def _scaled(self, rewards: np.ndarray, terminated: np.ndarray) -> np.ndarray:
        """Rewards over the spread of returns, whose running sum a terminal step does not carry over, as Gymnasium's."""
        seen = self.statistics.returns
        if seen is None:
            return rewards
        if not self._frozen:
            discounted = self._underway.discounted * self.statistics.gamma * ~terminated + rewards
            self._underway.discounted = discounted
            seen.see(discounted)
        return rewards / seen.scale
