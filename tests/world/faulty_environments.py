"""Environments that fail when they are told to, and one that wanders; for processes of their own, too."""

from __future__ import annotations

import os
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete

FAULTS = {
    "nan reward": "the reward is nan",
    "infinite reward": "the reward is inf",
    "text reward": "the reward is 'much', which is not one number",
    "no reward": "the reward is None, which is not one number",
    "two rewards": "which is not one number",
    "raises": "ValueError when it was stepped: the arm fell off",
    "wide": "outside its space",
    "nan observation": "is not a number",
    "long": r"has shape \(3,\), and its space says \(2,\)",
    "double": "is float64, and its space says float32",
    "four": "its step gives 4 values where five are asked for",
    "lines": "it raised ValueError when it was stepped: over two lines",
    "exits": "it raised SystemExit when it was stepped: 4",
}


class Faulty(gymnasium.Env[np.ndarray, int]):
    """Fails at action 1."""

    def __init__(self, fault: str = "none", at_reset: bool = False) -> None:
        self.observation_space = Box(-1, 1, (2,), np.float32)
        self.action_space = Discrete(2)
        self.fault, self.at_reset = fault, at_reset

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        if self.at_reset:
            raise OSError("no such robot")
        return np.zeros(2, np.float32), {}

    def step(self, action: int) -> Any:
        shown: Any = np.zeros(2, np.float32)
        reward: Any = 0.5
        fault = self.fault if action == 1 else "none"
        if fault == "raises":
            raise ValueError("the arm fell off")
        if fault == "lines":
            raise ValueError("over\n  two lines")
        if fault == "exits":
            raise SystemExit(4)
        if fault == "hangs":
            time.sleep(60)
        if fault == "dies":
            os._exit(3)
        if fault == "four":
            return shown, reward, False, {}
        rewards = {"nan reward": np.nan, "infinite reward": np.inf, "text reward": "much", "no reward": None}
        rewards |= {"two rewards": np.ones(2), "one reward": np.array([0.5])}
        reward = rewards.get(fault, reward)
        if fault in ("wide", "nan observation"):
            shown = np.array([0, 7 if fault == "wide" else np.nan], np.float32)
        if fault in ("long", "double"):
            shown = np.zeros(3 if fault == "long" else 2, np.float32 if fault == "long" else np.float64)
        return shown, reward, False, False, {}


class Wander(gymnasium.Env[np.ndarray, np.ndarray]):
    """A random walk that is pushed, and that ends by chance."""

    def __init__(self, size: int = 2) -> None:
        self.observation_space = Box(-np.inf, np.inf, (size,), np.float32)
        self.action_space = Box(-1, 1, (size,), np.float32)
        self.at = np.zeros(size)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.at = self.np_random.normal(size=self.at.shape)
        return self.at.astype(np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        self.at = self.at + action + self.np_random.normal(size=self.at.shape)
        ends = bool(self.np_random.random() < 0.05)
        return self.at.astype(np.float32), float(self.at[0]), ends, False, {}


class Forgetful(Wander):
    """A random walk whose seed does not say how it goes."""

    def step(self, action: np.ndarray) -> Any:
        self.at = self.at + np.random.default_rng().normal(size=self.at.shape)
        return self.at.astype(np.float32), 0.0, False, False, {}


class Counted(gymnasium.Env[int, int]):
    """Three states that are counted from 5, in a row; the last one is worth 1."""

    observation_space = Discrete(3, start=5)
    action_space = Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.at = 5
        return self.at, {}

    def step(self, action: int) -> Any:
        self.at = min(self.at + 1, 7) if action else 5
        return self.at, float(self.at == 7), self.at == 7, False, {}


class Digits(gymnasium.Env[Any, int]):
    """Two numbers that are counted from 3 and 1."""

    observation_space = MultiDiscrete([4, 2], start=[3, 1])
    action_space = Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return np.array([3, 1]), {}

    def step(self, action: int) -> Any:
        return np.array([6, 2]), 1.0, False, False, {}


class Even(gymnasium.Env[Any, int]):
    """Always the same."""

    observation_space = Box(0, 1, (1,), np.float32)
    action_space = Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> Any:
        return np.zeros(1, np.float32), 1.0, True, False, {}


class Grabs(Wander):
    """A random walk whose actions have a shape and a type."""

    def __init__(self, shape: tuple[int, ...] = (2, 2), dtype: str = "float32") -> None:
        super().__init__()
        self.action_space = Box(-1, 1, tuple(shape), np.dtype(dtype))


class Parts(gymnasium.Env[Any, int]):
    """What it shows has parts."""

    observation_space = Dict({"eye": Box(0, 1, (2,)), "ear": Discrete(2)})
    action_space = Discrete(2)


KINDS = (Faulty, Wander, Forgetful, Parts, Counted, Digits, Even, Grabs)
for name, kind in {kind.__name__: kind for kind in KINDS}.items():
    if f"{name}-v0" not in gymnasium.registry:
        gymnasium.register(f"{name}-v0", entry_point=kind, max_episode_steps=40)
