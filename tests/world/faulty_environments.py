"""Environments that fail when they are told to, and one that wanders; for processes of their own, too."""

from __future__ import annotations

import os
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete

FAULTS = {
    "nan reward": "the reward is nan",
    "infinite reward": "the reward is inf",
    "text reward": "could not convert",
    "raises": "ValueError when it was stepped: the arm fell off",
    "wide": "outside its space",
    "nan observation": "is not a number",
    "long": r"has shape \(3,\), and its space says \(2,\)",
    "double": "is float64, and its space says float32",
    "four": "ValueError when it was stepped",
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
        if fault == "hangs":
            time.sleep(60)
        if fault == "dies":
            os._exit(3)
        if fault == "four":
            return shown, reward, False, {}
        reward = {"nan reward": np.nan, "infinite reward": np.inf, "text reward": "much"}.get(fault, reward)
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


class Parts(gymnasium.Env[Any, int]):
    """What it shows has parts."""

    observation_space = Dict({"eye": Box(0, 1, (2,)), "ear": Discrete(2)})
    action_space = Discrete(2)


for name, kind in {"Faulty": Faulty, "Wander": Wander, "Forgetful": Forgetful, "Parts": Parts}.items():
    if f"{name}-v0" not in gymnasium.registry:
        gymnasium.register(f"{name}-v0", entry_point=kind, max_episode_steps=40)
