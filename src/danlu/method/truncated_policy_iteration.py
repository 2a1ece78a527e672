"""Truncated policy iteration: a policy is valued by a few sweeps only before it is improved.

    pi_k+1 = greedy in v_k
    v_k+1  = ( r_pi_k+1 + gamma P_pi_k+1 . )^j v_k        j sweeps

One sweep is value iteration, endlessly many are policy iteration; in between each turn costs little more than a sweep
of value iteration, which takes the best of A actions, and brings v nearer by up to gamma^j.

References:
    Puterman and Shin, 1978, "Modified policy iteration algorithms for discounted Markov decision problems",
    https://doi.org/10.1287/mnsc.24.11.1127
    Zhao, 2025, "Mathematical foundations of reinforcement learning", section 4.3
"""

from __future__ import annotations

import torch
from pydantic import Field

from danlu.method.bellman import Bellman
from danlu.method.planning import Planning, improve
from danlu.method.tables import PlanningTable
from danlu.registry import export


@export(
    "method", "truncated_policy_iteration", source="Puterman and Shin, 1978, https://doi.org/10.1287/mnsc.24.11.1127"
)
class TruncatedPolicyIteration(Planning):
    """Truncated policy iteration: between value iteration and policy iteration."""

    sweeps: int = Field(10, ge=1)
    """Sweeps by which a policy is valued; with 1 it is value iteration."""

    def iterate(self, agent: PlanningTable, equations: Bellman) -> float:
        """Improve the policy, then value it by so many sweeps."""
        residual = improve(agent, equations)
        chain = equations.under(agent.policy)
        here, there = agent.v.clone(), torch.empty_like(agent.v)
        for _ in range(self.sweeps):
            chain.sweep(here, there)
            here, there = there, here
        agent.v.copy_(here)
        return residual
