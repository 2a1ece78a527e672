"""A trained agent acts, by what it thinks best, where it was trained."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from danlu.errors import RunError, UnsupportedError


class Policy(Protocol):
    """What was trained, as it acts."""

    @property
    def env_id(self) -> str | None:
        """The environment it was trained in; None for what finds a number and acts nowhere."""
        ...

    @property
    def env_options(self) -> Mapping[str, Any]:
        """What that was made with."""
        ...

    def act(self, observation: Any) -> Any:
        """What it thinks best."""
        ...


class Recording(Protocol):
    """One episode, as it was seen; `danlu.world.recording.Recording`."""

    @property
    def frames(self) -> Sequence[np.ndarray]:
        """``[H, W, 3]`` in uint8 each, before the first step and after each one."""
        ...

    @property
    def rewards(self) -> float:
        """Their sum."""
        ...

    @property
    def length(self) -> int:
        """In steps."""
        ...

    @property
    def frames_per_second(self) -> float:
        """At which it is meant to be seen."""
        ...


class Record(Protocol):
    """Acts one episode and keeps what was seen of it; `danlu.world.recording.record`."""

    def __call__(
        self, env_id: str, act: Callable[[Any], Any], *, options: Mapping[str, Any] | None, seed: int, longest: int
    ) -> Recording:
        """The episode."""
        ...


class Made(Protocol):
    """An environment, which does not cut its episodes by itself."""

    @property
    def env(self) -> gym.Env[Any, Any]:
        """To be stepped."""
        ...

    @property
    def limit(self) -> int | None:
        """Steps after which its episodes are over; None where there is no end to them."""
        ...


class Make(Protocol):
    """Makes an environment; `danlu.world.making.make`."""

    def __call__(self, env_id: str, options: Mapping[str, Any] | None, *, render_mode: str | None) -> Made:
        """The environment, which shows itself as it is asked to."""
        ...


@dataclass(frozen=True)
class Episode:
    """What came of one episode.

    Attributes:
        seed: it began by.
        returned: its rewards, summed.
        length: its steps.
        whole: whether it ended by itself, and was not cut short.
        frames: what was seen of it, where that was kept.
        frames_per_second: at which that is meant to be seen.
    """

    seed: int
    returned: float
    length: int
    whole: bool
    frames: Sequence[np.ndarray] = field(default=(), repr=False)
    frames_per_second: float | None = None


def play(
    policy: Policy,
    *,
    episodes: int,
    seed: int,
    longest: int,
    make: Make,
    window: bool = False,
) -> Iterator[Episode]:
    """Episodes one after another, each acted when it is asked for.

    Args:
        policy: what acts.
        episodes: how many.
        seed: of the first; each of the others has the next one.
        longest: steps after which an episode is cut short.
        make: makes the environment.
        window: whether it is shown on the screen.

    Raises:
        UnsupportedError: where it acts nowhere, there is no screen, or what draws is not installed.
        RunError: where the environment cannot be acted in.
    """
    if window:
        require_screen()
    with _told(policy) as env_id:
        made = make(env_id, policy.env_options, render_mode="human" if window else None)
        try:
            for number in range(episodes):
                yield _episode(made, policy, seed + number, longest)
        finally:
            made.env.close()


def recorded(policy: Policy, *, episodes: int, seed: int, longest: int, record: Record) -> Iterator[Episode]:
    """The same, with what was seen of each; see `play`."""
    options = policy.env_options
    for at in range(seed, seed + episodes):
        with _told(policy) as env_id:
            one = record(env_id, policy.act, options=options, seed=at, longest=longest)
        yield Episode(at, one.rewards, one.length, one.length < longest, one.frames, one.frames_per_second)


@contextmanager
def _told(policy: Policy) -> Iterator[str]:
    """Within, what an environment lacks is a sentence; which one it is."""
    if policy.env_id is None:
        raise UnsupportedError(
            "what finds a number acts nowhere", do="Its report shows what it found: danlu report RUN."
        )
    try:
        yield policy.env_id
    except gym.error.DependencyNotInstalled as error:
        do = "Install it with: pip install 'danlu[play]'."
        raise UnsupportedError(f"what draws {policy.env_id} is not installed", do=do) from error
    except gym.error.Error as error:
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"the environment {policy.env_id} cannot be acted in: {words}") from error


def _episode(made: Made, policy: Policy, seed: int, longest: int) -> Episode:
    env, whole = made.env, longest if made.limit is None else min(longest, made.limit)
    observation, _ = env.reset(seed=seed)
    returned = 0.0
    for step in range(1, whole + 1):
        action = np.asarray(policy.act(np.asarray(observation)))
        observation, reward, terminated, truncated, _ = env.step(action if action.ndim else action.item())
        returned += float(reward)
        if terminated or truncated:
            return Episode(seed, returned, step, True)
    return Episode(seed, returned, whole, whole == made.limit)


def require_screen() -> None:
    """See that there is a screen to open a window on.

    Raises:
        UnsupportedError: where there is none.
    """
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise UnsupportedError("there is no screen here to open a window on", do="Write a GIF instead: --out FILE.gif.")
