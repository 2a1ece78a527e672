"""Sarsa with linear features: what actions are worth under the policy that is followed, as weighed features of a state.

    q(s, a) = phi(s)^T w_a
    w_a <- w_a + a_k [ r + gamma q(s', a') - q(s, a) ] phi(s)

a' is what is done next, chosen before the weights move; where nothing is done in s' (an episode was cut there, or the
turn is over) it is drawn from the policy.

References:
    Sutton and Barto, 2018, "Reinforcement learning", section 10.1, http://incompleteideas.net/book/the-book-2nd.html
    Zhao, 2025, "Mathematical foundations of reinforcement learning", section 8.3
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from danlu.acting import Agent, Discounting, Experience, Level, Steps, Turn
from danlu.config import Config
from danlu.method.exploring import Exploring
from danlu.method.features import Features
from danlu.method.linear import LinearActionValue, Weighing
from danlu.method.step_size import StepSize
from danlu.method.temporal import with_next
from danlu.registry import export
from danlu.spaces import Spaces


class Seen(NamedTuple):
    """One step of one environment.

    Attributes:
        phi: the features of where it began, ``[F]``.
        action: what was done, counted from 0.
        reward: what it brought.
        following: the features of where it led, ``[F]``.
        terminated: whether nothing is to be had from there on.
        ended: whether a new episode began after it.
    """

    phi: np.ndarray
    action: int
    reward: float
    following: np.ndarray
    terminated: bool
    ended: bool


@export("method", "sarsa_linear", source="Sutton and Barto, 2018, http://incompleteideas.net/book/the-book-2nd.html")
class SarsaLinear(Discounting):
    """Sarsa with linear features: on-policy control by temporal differences, from features of a state."""

    level: ClassVar[Level] = "features"
    mechanism: ClassVar[str] = "temporal difference"
    acts_in: ClassVar[frozenset[str]] = frozenset({"discrete"})

    gamma: float = Field(0.9, ge=0, le=1)
    """What a reward one step later is worth."""
    features: Features = Features()
    """What is seen of a state."""
    step_size: StepSize = StepSize(start=0.01)
    """How far the weights move at the k-th step."""
    epsilon: Exploring = Exploring()
    """The share of actions drawn from all alike."""
    steps: int = Field(100, ge=1)
    """Steps of each environment a turn."""

    def agent(self, spaces: Spaces, network: Config | None, seed: int) -> LinearActionValue:
        """See `ActingMethod`; all weights are 0."""
        return LinearActionValue(spaces, self.features, self.epsilon.at(0.0))

    def learn(self, agent: Agent, experience: Experience, turn: Turn) -> Mapping[str, float | Tensor]:
        """So many steps, each learnt from when the one after it has been chosen.

        Recorded: "loss", the mean squared error of updates, "reward", "epsilon", "step_size".
        """
        assert isinstance(agent, LinearActionValue)
        chance, rewards = turn.numpy_chance(), 0.0
        with torch.no_grad():
            agent.epsilon.fill_(self.epsilon.at(turn.share))
            learning = Weighing(agent.w.numpy(), int(agent.k), self.step_size)
            rows = (seen_in(agent, experience.rollout(agent, 1)) for _ in range(self.steps))
            for seen, following_action in with_next(rows, lambda features: next_action(agent, features, chance)):
                rewards += seen.reward
                self.learn_from(seen, following_action, learning)
            agent.k.fill_(learning.k)
        return learning.told() | {
            "reward": rewards / (self.steps * experience.num_envs),
            "epsilon": float(agent.epsilon),
        }

    def learn_from(self, seen: Seen, following_action: int, learning: Weighing) -> None:
        """One update."""
        goal = seen.reward
        if not seen.terminated:
            goal = seen.reward + self.gamma * float(seen.following.dot(learning.w[:, following_action]))
        learning.move(seen.phi, goal, seen.action)


def seen_in(agent: LinearActionValue, steps: Steps) -> list[Seen]:
    """One step of each environment."""
    columns = (
        agent.seen(steps.observations[0]),
        agent.columns(steps.actions[0]).tolist(),
        steps.rewards[0].tolist(),
        agent.seen(steps.following[0]),
        steps.terminated[0].tolist(),
        steps.ended[0].tolist(),
    )
    return [Seen(*each) for each in zip(*columns, strict=True)]


def next_action(agent: LinearActionValue, following: np.ndarray, chance: np.random.Generator) -> int:
    """What the policy would do next, drawn."""
    if chance.random() < float(agent.epsilon):
        return int(chance.integers(agent.num_actions))
    return int((following @ agent.w.numpy()).argmax())
