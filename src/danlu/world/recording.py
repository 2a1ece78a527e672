"""One episode, step by step, and as pictures."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium.error import DependencyNotInstalled
from gymnasium.wrappers import HumanRendering

from danlu.errors import RunError, UnsupportedError
from danlu.world.making import Made, make
from danlu.world.single import Single


@dataclass(frozen=True, eq=False)
class Recording:
    """One episode.

    Attributes:
        seed: it began by.
        rewards: their sum.
        length: in steps.
        whole: whether it came to its end, and was not cut short.
        frames_per_second: at which the environment is meant to be seen.
        frames: ``[H, W, 3]`` uint8 each, before the first step and after each one; none where they were not kept.
    """

    seed: int
    rewards: float
    length: int
    whole: bool
    frames_per_second: float
    frames: list[np.ndarray] = field(default_factory=list, repr=False)


def record(
    env_id: str,
    act: Callable[[np.ndarray], Any],
    *,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    longest: int = 1000,
    time_limit: int | None = None,
    prepare: Callable[[gymnasium.Env[Any, Any]], None] | None = None,
) -> Recording:
    """Play one episode, and take a picture at each step.

    Args:
        env_id: see `danlu.world.making.find`.
        act: what is done where the environment shows this.
        options: what the environment takes.
        seed: of the episode.
        longest: steps after which it is cut, where it is not before.
        time_limit: see `danlu.world.making.make`.
        prepare: is given the environment first, as to say what a grid world draws over its cells.

    Raises:
        UnsupportedError: where it draws no pictures, or a package to draw them is missing.
        RunError: where the environment or the agent fails.
    """
    made = make_seen(env_id, options, "rgb_array", time_limit=time_limit)
    try:
        if prepare is not None:
            prepare(made.env.unwrapped)
        return episode(made, act, seed=seed, longest=longest, pictures=True)
    finally:
        made.env.close()


def has_screen() -> bool:
    """Whether there is a screen to open a window on, as far as that can be told."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def make_seen(
    env_id: str,
    options: Mapping[str, Any] | None,
    mode: Literal["rgb_array", "human"],
    *,
    time_limit: int | None = None,
) -> Made:
    """Make one environment that shows itself: as arrays, or in a window, which may show its arrays.

    Args:
        env_id: see `danlu.world.making.find`.
        options: what it takes.
        mode: which.
        time_limit: see `danlu.world.making.make`.

    Raises:
        UnsupportedError: where it does not do that.
    """
    probe = make(env_id, options)
    modes = probe.env.metadata.get("render_modes") or ()
    probe.env.close()
    if mode not in modes and "rgb_array" not in modes:
        does = "draws no pictures" if mode == "rgb_array" else "does not show itself"
        raise UnsupportedError(f"'{probe.name}' {does}", where="data.env")
    if not has_screen():
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # or what draws looks for one, and says that it found none
    made = make(env_id, options, time_limit=time_limit, render_mode=mode if mode in modes else "rgb_array")
    return made if mode in modes else replace(made, env=HumanRendering(made.env))


def episode(
    made: Made, act: Callable[[np.ndarray], Any], *, seed: int, longest: int, pictures: bool = False
) -> Recording:
    """Play one episode of an environment.

    Args:
        made: the environment.
        act: what is done where it shows this.
        seed: of the episode.
        longest: steps after which it is cut, where it is not before.
        pictures: whether one is taken at each step.

    Raises:
        UnsupportedError: where it draws none, or a package to draw them is missing.
        RunError: where the environment or the agent fails.
    """
    single, total, length = Single(made, made.limit), 0.0, 0
    seen, ended = single.begin(seed), False
    frames = [_frame(made)] if pictures else []
    while not ended and length < longest:
        seen, reward, terminated, truncated = single.step(np.asarray(act(seen)))
        total, length, ended = total + reward, length + 1, terminated or truncated
        if pictures:
            frames.append(_frame(made))
    return Recording(seed, total, length, ended, float(made.env.metadata.get("render_fps") or 30), frames)


def _frame(made: Made) -> np.ndarray:
    try:
        picture = made.env.render()
    except DependencyNotInstalled as error:
        raise UnsupportedError(f"pictures of '{made.name}' need a package that is missing: {error}") from None
    except Exception as error:
        raise RunError(f"it raised {type(error).__name__} when it was drawn: {error}", where=made.name) from error
    if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.shape[2] != 3:
        raise UnsupportedError(f"'{made.name}' draws no pictures of red, green and blue", where="data.env")
    return picture.astype(np.uint8, copy=True)
