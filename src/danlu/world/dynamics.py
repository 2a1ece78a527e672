"""Environments of Gymnasium's own, many at once: the same numbers to the last bit, in a few operations on arrays.

Each is written in the order in which Gymnasium computes it, and rounds where Gymnasium rounds. Two functions could
differ between one number and many, the sine and the cosine: `exact` sees whether they do on this processor, and where
they do, environments are stepped one by one.

References:
    Barto, Sutton and Anderson, 1983, "Neuronlike adaptive elements that can solve difficult learning control problems",
    https://doi.org/10.1109/TSMC.1983.6313077 Moore, 1990, "Efficient memory-based learning for robot control",
    https://www.cl.cam.ac.uk/techreports/UCAM-CL-TR-209.html Sutton, 1996, "Generalization in reinforcement learning:
    successful examples using sparse coarse coding", https://papers.nips.cc/paper/1109
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

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
    pays_from: ClassVar[int] = 1
    """How many environments it takes to be faster than one by one."""

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
        if not np.count_nonzero(ended):
            return Moved(following, following, rewards, terminated, truncated)
        who = np.flatnonzero(ended).tolist()
        observations = following.copy()
        observations[who] = self.begin(who, [seeds(index) for index in who])
        return Moved(observations, following, rewards, terminated, truncated)

    def replay(self, index: int, seed: int, actions: np.ndarray) -> np.ndarray:
        """See `Stepper.replay`."""
        one = self.alone()
        shown = one.begin([0], [seed])
        for action in actions:
            one.advance(action[None])
            shown = one.show(one.state)
        self.take(index, one)
        self.elapsed[index] = len(actions)
        return np.asarray(shown[0])

    def alone(self) -> Self:
        """One more such environment."""
        return type(self)(1, self.limit, self.options)

    def take(self, index: int, one: Self) -> None:
        """Put an environment where another one is."""
        self.state[:, index] = one.state[:, 0]


_FAR = np.array([[2.4], [12 * 2 * math.pi / 360]])  # the cart's place and the pole's angle at which it fell


_FEW = 5  # environments that are moved on faster one by one


def _swing(theta_dot: Any, force: Any, costheta: Any, sintheta: Any) -> tuple[Any, Any]:
    """How the cart and the pole are accelerated: numbers, or arrays of them."""
    total_mass, length = 0.1 + 1.0, 0.5
    polemass_length = 0.1 * length
    temp = (force + polemass_length * (theta_dot * theta_dot) * sintheta) / total_mass
    thetaacc = (9.8 * sintheta - costheta * temp) / (length * (4.0 / 3.0 - 0.1 * (costheta * costheta) / total_mass))
    return temp - polemass_length * thetaacc * costheta / total_mass, thetaacc


def _swing_one(x: float, x_dot: float, theta: float, theta_dot: float, action: int) -> tuple[float, ...]:
    cosine, sine = float(np.cos(theta)), float(np.sin(theta))
    xacc, thetaacc = _swing(theta_dot, 10.0 if action == 1 else -10.0, cosine, sine)
    return x + 0.02 * x_dot, x_dot + 0.02 * xacc, theta + 0.02 * theta_dot, theta_dot + 0.02 * thetaacc


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
        if len(actions) <= _FEW:
            columns = zip(*self.state.tolist(), actions.tolist(), strict=True)
            self.state = np.array([_swing_one(*column) for column in columns]).T.copy()
        else:
            _, x_dot, theta, theta_dot = self.state
            change = np.empty_like(self.state)
            change[0], change[2] = x_dot, theta_dot
            change[1], change[3] = _swing(theta_dot, actions * 20.0 - 10.0, np.cos(theta), np.sin(theta))
            self.state = self.state + 0.02 * change
        far = np.abs(self.state[::2]) > _FAR
        terminated = far[0] | far[1]
        if self.options.get("sutton_barto_reward", False):
            return np.where(terminated, -1.0, 0.0), terminated
        return np.ones(len(actions)), terminated


class Pendulum(Vectorized):
    """Pendulum, as `gymnasium.envs.classic_control.PendulumEnv`."""

    size = 2
    takes = frozenset({"g"})
    pays_from = 3

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
    pays_from = 2

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


class Acrobot(Vectorized):
    """Acrobot, as `gymnasium.envs.classic_control.AcrobotEnv`."""

    size = 4
    pays_from = 3

    def start(self, chance: np.random.Generator) -> np.ndarray:
        """See `Vectorized.start`."""
        return chance.uniform(low=-0.1, high=0.1, size=(4,)).astype(np.float32)

    def begin(self, indices: Sequence[int], seeds: Sequence[int]) -> np.ndarray:
        """See `Stepper.begin`."""
        super().begin(indices, seeds)
        states = self.state[:, indices].T.astype(np.float32)  # Gymnasium's first state is, and the sines that it shows
        shown = [(np.cos(a), np.sin(a), np.cos(b), np.sin(b), *rates) for a, b, *rates in states]
        return np.array(shown, np.float32)

    def show(self, state: np.ndarray) -> np.ndarray:
        """See `Vectorized.show`."""
        first, second = np.ascontiguousarray(state[:2])
        return np.array((np.cos(first), np.sin(first), np.cos(second), np.sin(second), *state[2:]), np.float32).T.copy()

    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Vectorized.advance`."""
        torque, dt, y = actions - 1.0, 0.2, self.state
        k1 = _acrobot(y, torque)
        k2 = _acrobot(y + dt / 2.0 * k1, torque)
        k3 = _acrobot(y + dt / 2.0 * k2, torque)
        k4 = _acrobot(y + dt * k3, torque)
        state = y + dt / 6.0 * (k1 + 2 * k2 + 2 * k3 + k4)
        angles, turn = state[:2], math.pi - -math.pi
        while np.count_nonzero(over := angles > math.pi):
            angles[over] -= turn
        while np.count_nonzero(under := angles < -math.pi):
            angles[under] += turn
        np.clip(state[2], -4 * math.pi, 4 * math.pi, out=state[2])
        np.clip(state[3], -9 * math.pi, 9 * math.pi, out=state[3])
        self.state = state
        terminated = -np.cos(state[0]) - np.cos(state[1] + state[0]) > 1.0
        return np.where(terminated, 0.0, -1.0), terminated


def _acrobot(state: np.ndarray, torque: np.ndarray) -> np.ndarray:
    """How the two angles and their rates change, ``[4, N]``; links of mass and length 1."""
    theta1, theta2, rate1, rate2 = state
    cosine, sine = np.cos(theta2), np.sin(theta2)
    d1 = 0.25 + (1.25 + cosine) + 1.0 + 1.0
    d2 = 0.25 + 0.5 * cosine + 1.0
    phi2 = 0.5 * 9.8 * np.cos(theta1 + theta2 - math.pi / 2.0)
    phi1 = -0.5 * _squares(rate2) * sine - rate2 * rate1 * sine + 1.5 * 9.8 * np.cos(theta1 - math.pi / 2) + phi2
    faster2 = (torque + d2 / d1 * phi1 - 0.5 * _squares(rate1) * sine - phi2) / (1.25 - _squares(d2) / d1)
    faster1 = -(d2 * faster2 + phi1) / d1
    return np.array((rate1, rate2, faster1, faster2))


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
    "gymnasium.envs.classic_control.acrobot:AcrobotEnv": Acrobot,
}
"""By what Gymnasium makes them with."""
