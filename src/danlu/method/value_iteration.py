"""Value iteration: sweeps of Bellman's optimality equation.

    q_k(s, a) = r(s, a) + gamma sum_s' p(s' | s, a) v_k(s')
    v_k+1(s)  = max_a q_k(s, a)

Each sweep brings v nearer to the best by gamma, from wherever it begins: ``|v_k - v*| <= gamma^k |v_0 - v*|``.

References:
    Bellman, 1957, "A Markovian decision process", https://www.jstor.org/stable/24900506
    Zhao, 2025, "Mathematical foundations of reinforcement learning", section 4.1
"""

from __future__ import annotations

import torch
from pydantic import Field

from danlu.method.bellman import Bellman
from danlu.method.planning import Planning, improve
from danlu.method.tables import PlanningTable
from danlu.registry import export


@export("method", "value_iteration", source="Bellman, 1957, https://www.jstor.org/stable/24900506")
class ValueIteration(Planning):
    """Value iteration: every state's value becomes what its best action is worth, sweep by sweep."""

    sweeps: int = Field(1, ge=1)
    """Sweeps over all states a turn."""

    def iterate(self, agent: PlanningTable, equations: Bellman) -> float:
        """So many sweeps; the policy is greedy in what comes of them."""
        here, there = agent.v.clone(), torch.empty_like(agent.v)
        for _ in range(self.sweeps):
            equations.sweep(here, there)
            here, there = there, here
        agent.v.copy_(here)
        return improve(agent, equations)
