"""TRPO: Fisher's products against Fisher's matrix, a solver against a solved system, and a bound that is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from danlu.acting import Turn
from danlu.method.advantages import OnPolicy, standardised
from danlu.method.trpo import TRPO, Region, conjugate_gradient
from danlu.parts.actor_critic import SeparateActorCritic
from danlu.parts.distributions import Categorical
from danlu.parts.network import MLP
from danlu.spaces import Spaces
from playing import Played

F = 4
SEEN = Box(-np.inf, np.inf, (F,))
ACTIONS = {"choice": Discrete(3), "numbers": Box(-1, 1, (2,))}


def made(action: str, batch: int = 12) -> tuple[SeparateActorCritic, OnPolicy]:
    """An agent in float64, away from its start, and steps as it might have taken them."""
    agent = SeparateActorCritic(Spaces(SEEN, ACTIONS[action]), MLP(hidden=(5,)), seed=0).double()
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        agent.actor.theta += 0.5 * torch.randn(agent.actor.theta.shape, generator=chance, dtype=torch.float64)
    x = torch.randn(batch, F, generator=chance, dtype=torch.float64)
    actions, log_prob = agent.family.draw(*agent.outputs(x.numpy()), chance)
    advantages = torch.randn(batch, generator=chance, dtype=torch.float64)
    nothing = torch.zeros(batch, dtype=torch.float64)
    return agent, OnPolicy(x, torch.from_numpy(actions), torch.from_numpy(log_prob), nothing, advantages, nothing)


def jacobian(agent: SeparateActorCritic, x: torch.Tensor) -> torch.Tensor:
    """Of all that the distribution is told, by every weight, ``[B, O, P]``."""

    def told(theta: torch.Tensor) -> torch.Tensor:
        outputs, own = agent.actor.differentiable(x, theta)
        return torch.cat([outputs, own.expand(len(x), -1)], 1)

    return torch.autograd.functional.jacobian(told, agent.actor.theta.detach())


@pytest.mark.parametrize("action", ACTIONS)
def test_fishers_product_is_with_fishers_matrix(action: str) -> None:
    agent, batch = made(action)
    j = jacobian(agent, batch.x)
    outputs, own = agent.actor(batch.x)
    if isinstance(agent.family, Categorical):
        p = outputs.detach().softmax(1)
        inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    else:
        inverse = (-2 * own.detach()).exp()
        inner = torch.diag(torch.cat([inverse, torch.full_like(inverse, 2.0)])).expand(len(batch), -1, -1)
    fisher = torch.einsum("bop,boq,bqr->pr", j, inner, j) / len(batch)
    region = Region.of(agent, batch)
    columns = torch.stack([region.fisher(v) for v in torch.eye(len(fisher), dtype=torch.float64)], 1)
    torch.testing.assert_close(columns, fisher, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("action", ACTIONS)
def test_the_surrogates_gradient_and_the_divergence_at_other_weights(action: str) -> None:
    agent, batch = made(action)
    region, theta = Region.of(agent, batch), agent.actor.theta.detach().clone()
    assert region.at(theta) == (0.0, 0.0)
    direction = torch.randn(theta.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = 1e-5 * direction
    slope = (region.at(theta + step)[0] - region.at(theta - step)[0]) / 2
    assert slope == pytest.approx(float(region.gradient @ step), rel=1e-6)
    far = 1e-3 * direction
    assert region.at(theta + far)[1] == pytest.approx(float(far @ region.fisher(far)) / 2, rel=1e-2)
    assert torch.equal(agent.actor.theta, theta)


def test_conjugate_gradients_solve_a_system() -> None:
    chance = torch.Generator().manual_seed(0)
    root = torch.randn(8, 8, generator=chance, dtype=torch.float64)
    a, b = root @ root.T + torch.eye(8), torch.randn(8, generator=chance, dtype=torch.float64)
    torch.testing.assert_close(
        conjugate_gradient(lambda v: a @ v, b, 20), torch.linalg.solve(a, b), rtol=1e-6, atol=1e-8
    )
    assert not conjugate_gradient(lambda v: a @ v, torch.zeros(8), 20).any()


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_the_policy_never_goes_further_than_its_bound_and_always_gains(env: str) -> None:
    method = TRPO(num_steps=128, critic_epochs=2, target_kl=0.01, damping=1e-3)
    played = Played(env, num_envs=2)
    agent = method.agent(played.spaces, MLP(hidden=(32, 32)), seed=0)
    optimizer = torch.optim.AdamW(agent.groups()[0]["params"], lr=1e-3, weight_decay=0.0)
    moved, gain = 0, 0.0
    for number in range(15):
        before, critic = agent.actor.theta.detach().clone(), agent.critic.theta.detach().clone()
        steps = played.rollout(agent, method.num_steps)
        x, actions = played.spaces.vector(steps.observations.flatten(0, 1)), steps.actions.flatten(0, 1)
        with torch.no_grad():
            said = agent.opinion(x, actions)
            old = agent.actor(x)
        batch = OnPolicy.of(agent, steps, x, said, gamma=method.gamma, lam=method.gae_lambda)
        method.improve(agent, batch)
        method.follow(agent, batch, Turn(number, 0.0, optimizer, seed=number))
        with torch.no_grad():
            new = agent.actor(x)
            kl = float(agent.family.kl(*old, *new).mean())
            ratio = (agent.family.log_prob(*new, actions) - said.log_prob()).exp()
            gained = float(((ratio - 1) * standardised(batch.advantages)).mean())
        assert kl <= method.target_kl * (1 + 1e-3)
        if not torch.equal(before, agent.actor.theta):
            moved += 1
            gain += gained
            assert gained > 0
            assert kl > method.target_kl / 20
        assert not torch.equal(critic, agent.critic.theta)
    assert moved > 10
    assert gain > 0.1
