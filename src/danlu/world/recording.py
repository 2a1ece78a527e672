"""One episode, as pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import DependencyNotInstalled

from danlu.errors import DanluError, RunError, UnsupportedError
from danlu.world.checks import Actions, Stacked
from danlu.world.making import make


@dataclass(frozen=True, eq=False)
class Recording:
    """One episode.

    Attributes:
        frames: ``[H, W, 3]`` uint8 each, before the first step and after each one.
        rewards: their sum.
        length: in steps.
        frames_per_second: at which the environment is meant to be seen.
    """

    frames: list[np.ndarray]
    rewards: float
    length: int
    frames_per_second: float


def record(
    env_id: str,
    act: Callable[[np.ndarray], Any],
    *,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    longest: int = 1000,
    prepare: Callable[[gymnasium.Env[Any, Any]], None] | None = None,
) -> Recording:
    """Play one episode, and take a picture at each step.

    Args:
        env_id: see `danlu.world.making.find`.
        act: what is done where the environment shows this.
        options: what the environment takes.
        seed: of the episode.
        longest: steps after which it is cut, where it is not before.
        prepare: is given the environment first, as to say what a grid world draws over its cells.

    Raises:
        UnsupportedError: where it draws no pictures, or a package to draw them is missing.
        RunError: where the environment or the agent fails.
    """
    made = make(env_id, options, render_mode=_mode(env_id, options))
    env = made.env
    shown, actions = Stacked(env.observation_space, "observation"), Actions(env.action_space, 1)
    limit = min(longest, made.limit or longest)
    try:
        if prepare is not None:
            prepare(env.unwrapped)
        observation, _ = env.reset(seed=seed)
        frames, total, length = [_frame(env, made.name)], 0.0, 0
        ended = False
        while not ended and length < limit:
            where = f"{made.name}, step {length + 1}"
            seen = np.asarray(shown.check(observation, where), shown.dtype)
            action = actions.array(np.asarray(act(seen))[None], where)[0]
            observation, reward, terminated, truncated, _ = env.step(action if action.ndim else action.item())
            total, length, ended = total + float(reward), length + 1, bool(terminated or truncated)
            frames.append(_frame(env, made.name))
    except DanluError:
        raise
    except DependencyNotInstalled as error:
        raise UnsupportedError(f"pictures of '{made.name}' need a package that is missing: {error}") from None
    except Exception as error:
        raise RunError(f"'{made.name}' raised {type(error).__name__}: {error}", where=made.name) from error
    finally:
        env.close()
    return Recording(frames, total, length, float(env.metadata.get("render_fps") or 30))


def _mode(env_id: str, options: Mapping[str, Any] | None) -> str:
    """The mode of pictures, where the environment has it."""
    probe = make(env_id, options)
    modes = probe.env.metadata.get("render_modes") or ()
    probe.env.close()
    if "rgb_array" not in modes:
        raise UnsupportedError(f"'{probe.name}' draws no pictures", where="data.env")
    return "rgb_array"


def _frame(env: gymnasium.Env[Any, Any], name: str) -> np.ndarray:
    picture = env.render()
    if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.shape[2] != 3:
        raise UnsupportedError(f"'{name}' draws no pictures of red, green and blue", where="data.env")
    return picture.astype(np.uint8, copy=True)
