"""What a recipe may say of the world that is acted in."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from danlu.config import Config


class WorldConfig(Config):
    """What is acted in, and for how long."""

    env: str | None = None
    """A Gymnasium environment by its id (CartPole-v1), or gridworld; null where a method needs none."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What the environment itself takes, by name."""
    num_envs: int = Field(1, ge=1)
    """So many environments run side by side."""
    workers: int = Field(0, ge=0)
    """Processes that slow environments run in; 0 runs them in this one."""
    timeout: float = Field(120.0, gt=0)
    """Seconds that an environment in a process of its own may take for a step."""
    time_limit: int | None = Field(None, ge=1)
    """Steps after which an episode is cut; by default the environment's own."""
    normalize_observations: bool = False
    """Shift and scale each number of an observation to mean 0 and variance 1, as seen so far."""
    normalize_rewards: bool = False
    """Scale rewards so that discounted returns have variance 1, as seen so far."""
    env_steps: int | None = Field(None, ge=1)
    """Steps of all environments together, after which the run ends: with the turn in which they are reached."""
    eval_episodes: int = Field(10, ge=0)
    """Whole episodes, without exploring, that the agent is measured by."""
    eval_steps: int = Field(10_000, ge=1)
    """Steps after which such an episode is cut, where nothing ends it."""
    record: bool = False
    """Keep an episode in pictures at each measurement, for the report."""
