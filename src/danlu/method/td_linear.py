"""TD(0) with linear features: what states are worth under a policy, as weighed features of them.

    w <- w + a_k [ r + gamma phi(s')^T w - phi(s)^T w ] phi(s)

It comes to the fixed point ``A w = b`` of Bellman's operator followed by projection on what features can say,

    A = Phi^T D (I - gamma P_pi) Phi        b = Phi^T D r_pi

where D is how often the policy visits each state. With a feature for each state it is TD(0) with a table.

References:
    Sutton, 1988, "Learning to predict by the methods of temporal differences", https://doi.org/10.1007/BF00115009
    Tsitsiklis and Van Roy, 1997, "An analysis of temporal-difference learning with function approximation",
    https://doi.org/10.1109/9.580874
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from gymnasium.spaces import Discrete
from pydantic import Field
from torch import Tensor

from danlu.acting import Agent, Discounting, Experience, Goal, Level, Steps, Turn
from danlu.config import Config
from danlu.errors import UnsupportedError
from danlu.method.features import Features
from danlu.method.linear import LinearValue, Weighing
from danlu.method.step_size import StepSize
from danlu.method.tables import fixed_policy
from danlu.registry import export
from danlu.spaces import Spaces, in_words


@export("method", "td_linear", source="Tsitsiklis and Van Roy, 1997, https://doi.org/10.1109/9.580874")
class TDLinear(Discounting):
    """TD(0) with linear features: values a given policy by temporal differences, from features of a state."""

    level: ClassVar[Level] = "features"
    goal: ClassVar[Goal] = "prediction"
    mechanism: ClassVar[str] = "temporal difference"
    acts_in: ClassVar[frozenset[str]] = frozenset({"discrete"})

    gamma: float = Field(0.9, ge=0, le=1)
    """What a reward one step later is worth."""
    features: Features = Features()
    """What is seen of a state."""
    policy: tuple[int, ...] = ()
    """The policy's action in each state of a finite world, counted from 0; empty for all actions alike."""
    epsilon: float = Field(0.0, ge=0, le=1)
    """The share of actions that are drawn from all alike instead."""
    step_size: StepSize = StepSize(start=0.01)
    """How far the weights move at the k-th step."""
    steps: int = Field(1000, ge=1)
    """Steps of each environment a turn."""

    def agent(self, spaces: Spaces, network: Config | None, seed: int) -> LinearValue:
        """See `ActingMethod`; all weights are 0.

        Raises:
            UnsupportedError: where a policy is given for states that cannot be counted.
        """
        num_states, num_actions = spaces.num_states or 1, spaces.num_actions or 1
        if self.policy and not isinstance(spaces.observation, Discrete):
            what = f"a policy is given state by state, and there is no end of them in {in_words(spaces.observation)}"
            raise UnsupportedError(what, where="method.policy", do="Leave it out: all actions alike.")
        policy = fixed_policy(self.policy, self.epsilon, num_states if self.policy else 1, num_actions)
        return LinearValue(spaces, self.features, policy)

    def learn(self, agent: Agent, experience: Experience, turn: Turn) -> Mapping[str, float | Tensor]:
        """So many steps; recorded: "loss", the mean squared error of updates, "reward", "step_size"."""
        assert isinstance(agent, LinearValue)
        with torch.no_grad():
            learning = Weighing(agent.w.numpy(), int(agent.k), self.step_size)
            steps = experience.rollout(agent, self.steps)
            for phi, following, reward in zip(*steps_of(agent, steps), strict=True):
                learning.move(phi, float(reward + self.gamma * following.dot(learning.w)))
            agent.k.fill_(learning.k)
        return learning.told() | {"reward": float(steps.rewards.double().mean())}


def steps_of(agent: LinearValue, steps: Steps) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each step's features ``[T * N, F]``, those of where it led, 0 where nothing is to be had there, and rewards."""
    following = agent.seen(steps.following.flatten(0, 1))
    following[steps.terminated.flatten().cpu().numpy()] = 0.0
    return agent.seen(steps.observations.flatten(0, 1)), following, steps.rewards.double().flatten().cpu().numpy()
