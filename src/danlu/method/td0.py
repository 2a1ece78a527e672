"""TD(0): what states are worth under a policy, from one step after another.

    v(s) <- v(s) + a_k [ r + gamma v(s') - v(s) ]

It seeks the solution of Bellman's equation without knowing the model, and comes to it with probability one where every
state is visited for ever and step sizes, by the visits of each state, meet the conditions of Robbins and Monro.

References:
    Sutton, 1988, "Learning to predict by the methods of temporal differences", https://doi.org/10.1007/BF00115009
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from danlu.acting import Agent, Experience, Goal, Turn
from danlu.config import Config
from danlu.method.step_size import StepSize
from danlu.method.tables import FiniteMethod, PolicyTable, fixed_policy, sizes
from danlu.method.temporal import Learning, transitions
from danlu.registry import export
from danlu.spaces import Spaces


@export("method", "td0", source="Sutton, 1988, https://doi.org/10.1007/BF00115009")
class TD0(FiniteMethod):
    """TD(0): values a given policy by temporal differences."""

    goal: ClassVar[Goal] = "prediction"
    mechanism: ClassVar[str] = "temporal difference"

    policy: tuple[int, ...] = ()
    """The policy's action in each state, counted from 0; empty for all actions alike."""
    epsilon: float = Field(0.0, ge=0, le=1)
    """The share of actions that are drawn from all alike instead."""
    step_size: StepSize = StepSize(start=0.05)
    """How far a state's value moves at its k-th visit."""
    steps: int = Field(1000, ge=1)
    """Steps of each environment a turn."""

    def agent(self, spaces: Spaces, network: Config | None, seed: int) -> PolicyTable:
        """See `ActingMethod`."""
        return PolicyTable(spaces, fixed_policy(self.policy, self.epsilon, *sizes(spaces)))

    def learn(self, agent: Agent, experience: Experience, turn: Turn) -> Mapping[str, float | Tensor]:
        """So many steps; recorded: "loss", the mean squared error of updates, "reward", "value", "step_size"."""
        assert isinstance(agent, PolicyTable)
        with torch.no_grad():
            learning = Learning(agent.v.numpy(), agent.visits.numpy(), self.step_size)
            steps = experience.rollout(agent, self.steps)
            for seen in chain.from_iterable(transitions(agent, steps)):
                goal = seen.reward
                if not seen.terminated:
                    goal += self.gamma * float(learning.entries[seen.following])
                learning.move((seen.state,), goal)
        return learning.told() | {"reward": float(steps.rewards.double().mean()), "value": float(agent.v.mean())}
