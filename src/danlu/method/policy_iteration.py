"""Policy iteration: value a policy, then make it greedy in those values, until it stays as it is.

    v_k       solves  v = r_pi_k + gamma P_pi_k v                            evaluation
    pi_k+1(s) = argmax_a [ r(s, a) + gamma sum_s' p(s' | s, a) v_k(s') ]     improvement

No policy is worse in any state than the one before, and there are finitely many, so it ends at the best one.

References:
    Howard, 1960, "Dynamic programming and Markov processes"
    Sutton and Barto, 2018, "Reinforcement learning", section 4.3, http://incompleteideas.net/book/the-book-2nd.html
    Zhao, 2025, "Mathematical foundations of reinforcement learning", section 4.2
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from danlu.method.bellman import Bellman
from danlu.method.planning import Planning, improve
from danlu.method.tables import PlanningTable
from danlu.registry import export


@export("method", "policy_iteration", source="Howard, 1960, http://incompleteideas.net/book/the-book-2nd.html")
class PolicyIteration(Planning):
    """Policy iteration: a policy is valued in full before it is improved."""

    evaluation: Literal["auto", "closed", "sweeps"] = "auto"
    """How a policy is valued: by solving its equations in closed form, by sweeps until they change no more, or the
    first where there are few states."""
    tolerance: float = Field(1e-10, gt=0)
    """How near sweeps must come to what states are worth."""

    def iterate(self, agent: PlanningTable, equations: Bellman) -> float:
        """Value the policy as it is, then improve it."""
        chain = equations.under(agent.policy)
        if self.evaluation == "closed":
            agent.v.copy_(chain.solve())
        elif self.evaluation == "sweeps":
            agent.v.copy_(chain.settle(agent.v, self.tolerance)[0])
        else:
            agent.v.copy_(chain.values(self.tolerance, start=agent.v))
        return improve(agent, equations)
