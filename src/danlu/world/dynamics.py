"""Environments of Gymnasium's own, many at once: the same numbers to the last bit, in a few operations on arrays.

Each is written in the order in which Gymnasium computes it, and rounds where Gymnasium rounds. Two functions could
differ between one number and many, the sine and the cosine: `exact` sees whether they do on this processor, and where
they do, environments are stepped one by one.

References:
    Barto, Sutton and Anderson, 1983, "Neuronlike adaptive elements that can solve difficult learning control problems",
    https://doi.org/10.1109/TSMC.1983.6313077 Moore, 1990, "Efficient memory-based learning for robot control",
    https://www.cl.cam.ac.uk/techreports/UCAM-CL-TR-209.html
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from danlu.world.stepping import Moved, Stepper


class Vectorized(Stepper):
    """Environments whose states are the columns of one array.

    Args:
        num_envs: N.
        limit: steps after which an episode is cut; None for never.
        options: what the environment takes.

    Attributes:
        state: ``[F, N]`` float64, one row a quantity.
    """

    size: ClassVar[int]
    """How many numbers a state has."""
    takes: ClassVar[frozenset[str]] = frozenset()
    """Options that are understood; with others, environments are stepped one by one."""

    def __init__(self, num_envs: int, limit: int | None, options: Mapping[str, Any]) -> None:
        self.limit = limit
        self.options = options
        self.state = np.zeros((self.size, num_envs))
        self.elapsed = np.zeros(num_envs, np.int64)

    @abstractmethod
    def start(self, chance: np.random.Generator) -> Any:
        """The state an episode begins in, as Gymnasium draws it."""

    @abstractmethod
    def show(self, state: np.ndarray) -> np.ndarray:
        """What states ``[F, N]`` look like, ``[N, ...]``."""

    @abstractmethod
    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Move `state` on; rewards ``[N]`` float64, and whether each episode terminated, ``[N]``."""

    def begin(self, indices: Sequence[int], seeds: Sequence[int]) -> np.ndarray:
        """See `Stepper.begin`."""
        for index, seed in zip(indices, seeds, strict=True):
            self.state[:, index] = self.start(np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed))))
        self.elapsed[indices] = 0
        return self.show(self.state[:, indices])

    def step(self, actions: np.ndarray, seeds: Callable[[int], int]) -> Moved:
        """See `Stepper.step`."""
        rewards, terminated = self.advance(actions)
        following = self.show(self.state)
        self.elapsed += 1
        truncated = np.zeros_like(terminated) if self.limit is None else self.elapsed >= self.limit
        ended = terminated | truncated
        if not ended.any():
            return Moved(following, following, rewards, terminated, truncated)
        who = np.flatnonzero(ended).tolist()
        observations = following.copy()
        observations[who] = self.begin(who, [seeds(index) for index in who])
        return Moved(observations, following, rewards, terminated, truncated)

    def replay(self, index: int, seed: int, actions: np.ndarray) -> np.ndarray:
        """See `Stepper.replay`."""
        one = type(self)(1, self.limit, self.options)
        shown = one.begin([0], [seed])
        for action in actions:
            one.advance(action[None])
            shown = one.show(one.state)
        self.state[:, index] = one.state[:, 0]
        self.elapsed[index] = len(actions)
        return np.asarray(shown[0])


class CartPole(Vectorized):
    """CartPole, as `gymnasium.envs.classic_control.CartPoleEnv`."""

    size = 4
    takes = frozenset({"sutton_barto_reward"})

    def start(self, chance: np.random.Generator) -> np.ndarray:
        """See `Vectorized.start`."""
        return chance.uniform(low=-0.05, high=0.05, size=(4,))

    def show(self, state: np.ndarray) -> np.ndarray:
        """See `Vectorized.show`."""
        return state.T.astype(np.float32, order="C")

    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Vectorized.advance`."""
        gravity, total_mass, length, tau = 9.8, 0.1 + 1.0, 0.5, 0.02
        polemass_length = 0.1 * length
        x, x_dot, theta, theta_dot = self.state
        force = np.where(actions == 1, 10.0, -10.0)
        costheta, sintheta = np.cos(theta), np.sin(theta)
        temp = (force + polemass_length * np.square(theta_dot) * sintheta) / total_mass
        thetaacc = (gravity * sintheta - costheta * temp) / (
            length * (4.0 / 3.0 - 0.1 * np.square(costheta) / total_mass)
        )
        xacc = temp - polemass_length * thetaacc * costheta / total_mass
        self.state = moved = np.empty_like(self.state)
        np.add(x, tau * x_dot, out=moved[0])
        np.add(x_dot, tau * xacc, out=moved[1])
        np.add(theta, tau * theta_dot, out=moved[2])
        np.add(theta_dot, tau * thetaacc, out=moved[3])
        terminated = (np.abs(moved[0]) > 2.4) | (np.abs(moved[2]) > 12 * 2 * math.pi / 360)
        if self.options.get("sutton_barto_reward", False):
            return np.where(terminated, -1.0, 0.0), terminated
        return np.ones(len(actions)), terminated


class Pendulum(Vectorized):
    """Pendulum, as `gymnasium.envs.classic_control.PendulumEnv`."""

    size = 2
    takes = frozenset({"g"})

    def start(self, chance: np.random.Generator) -> np.ndarray:
        """See `Vectorized.start`."""
        high = np.array([np.pi, 1.0])
        return chance.uniform(low=-high, high=high)

    def show(self, state: np.ndarray) -> np.ndarray:
        """See `Vectorized.show`."""
        theta, speed = np.ascontiguousarray(state)
        shown = np.empty((len(theta), 3), np.float32)
        shown[:, 0], shown[:, 1], shown[:, 2] = np.cos(theta), np.sin(theta), speed
        return shown

    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Vectorized.advance`."""
        g, dt = self.options.get("g", 10.0), 0.05
        theta, speed = self.state
        torque = np.clip(actions[:, 0], -2.0, 2.0)
        angle = ((theta + np.pi) % (2 * np.pi)) - np.pi
        costs = _squares(angle) + 0.1 * _squares(speed) + 0.001 * _squares(torque)
        faster = speed + (3 * g / (2 * 1.0) * np.sin(theta) + 3.0 / (1.0 * 1.0**2) * torque) * dt
        faster = np.clip(faster, -8, 8)
        self.state = np.array((theta + faster * dt, faster))
        return -costs, np.zeros(len(actions), bool)


class MountainCar(Vectorized):
    """MountainCar with three actions, as `gymnasium.envs.classic_control.MountainCarEnv`."""

    size = 2
    takes = frozenset({"goal_velocity"})

    def start(self, chance: np.random.Generator) -> tuple[float, float]:
        """See `Vectorized.start`."""
        return chance.uniform(low=-0.6, high=-0.4), 0.0

    def show(self, state: np.ndarray) -> np.ndarray:
        """See `Vectorized.show`."""
        return state.T.astype(np.float32, order="C")

    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Vectorized.advance`."""
        position, velocity = self.state
        slope = np.array([math.cos(3 * p) for p in position.tolist()])
        velocity = velocity + ((actions - 1) * 0.001 + slope * (-0.0025))
        velocity = np.clip(velocity, -0.07, 0.07)
        position = np.clip(position + velocity, -1.2, 0.6)
        velocity = np.where((position == -1.2) & (velocity < 0), 0.0, velocity)
        self.state = np.array((position, velocity))
        terminated = (position >= 0.5) & (velocity >= self.options.get("goal_velocity", 0))
        return np.full(len(actions), -1.0), terminated


def _squares(values: np.ndarray) -> np.ndarray:
    """Each number squared as a number alone is, which may round differently from an array."""
    return np.array([value**2 for value in values], values.dtype)


@functools.cache
def exact() -> bool:
    """Whether this processor's sine and cosine are the same of one number as of many."""
    points = np.random.Generator(np.random.PCG64(0)).uniform(-30, 30, 67)
    for function in (np.sin, np.cos):
        one_by_one = np.array([function(point) for point in points])
        if any((function(points[:n]) != one_by_one[:n]).any() for n in (1, 2, 3, 5, 8, 67)):
            return False
    return True


VECTORIZED: dict[str, type[Vectorized]] = {
    "gymnasium.envs.classic_control.cartpole:CartPoleEnv": CartPole,
    "gymnasium.envs.classic_control.pendulum:PendulumEnv": Pendulum,
    "gymnasium.envs.classic_control.mountain_car:MountainCarEnv": MountainCar,
}
"""By what Gymnasium makes them with."""
