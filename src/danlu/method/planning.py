"""What the methods share that plan in a finite world whose model is known."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from danlu.acting import Agent, Experience, Turn
from danlu.config import Config
from danlu.method.bellman import Bellman, change, greedy
from danlu.method.tables import FiniteMethod, PlanningTable
from danlu.spaces import Spaces

_SLACK = 1e-10
"""Two actions are equally good that differ by less, of the largest value: rounding must not change a policy."""


class Planning(FiniteMethod):
    """Dynamic programming: what states are worth from the model alone, without a step in the world.

    Recorded: "loss", by how much Bellman's optimality equation is missed at most (the largest change that a sweep would
    make, as the policy is improved); "value", the mean over states; "changed", the share of states whose action
    changed.
    """

    mechanism: ClassVar[str] = "dynamic programming"

    def agent(self, spaces: Spaces, network: Config | None, seed: int) -> PlanningTable:
        """See `ActingMethod`; all values are 0, and every state's action is the first."""
        return PlanningTable(spaces)

    def learn(self, agent: Agent, experience: Experience, turn: Turn) -> Mapping[str, float | Tensor]:
        """One iteration."""
        assert isinstance(agent, PlanningTable)
        equations = agent.equations(experience.model, self.gamma)
        with torch.no_grad():
            policy = agent.policy.clone()
            residual = self.iterate(agent, equations)
            changed = float((agent.policy != policy).double().mean())
        return {"loss": residual, "value": float(agent.v.mean()), "changed": changed}

    @abstractmethod
    def iterate(self, agent: PlanningTable, equations: Bellman) -> float:
        """Bring the agent's tables nearer to the best, in place; what `improve` said."""


def improve(agent: PlanningTable, equations: Bellman) -> float:
    """Policy improvement: in each state the action that is best when what follows is worth ``v``; a tie changes none.

    Returns:
        By how much ``v`` misses Bellman's optimality equation at most.
    """
    equations.action_values(agent.v, out=agent.q)
    slack = _SLACK * max(1.0, float(agent.v.abs().max()))
    agent.policy.copy_(greedy(agent.q, agent.policy, slack))
    return change(agent.v, agent.q.amax(1))
