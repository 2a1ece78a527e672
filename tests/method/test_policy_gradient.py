"""REINFORCE's gradient, expected over every path of a small world, is that of the expected return."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete

from danlu.acting import Steps
from danlu.method.qac import QAC
from danlu.method.reinforce import Reinforce
from danlu.parts.actor_critic import ActorCritic
from danlu.parts.network import MLP
from danlu.spaces import Spaces

STATES, ACTIONS, HORIZON, GAMMA = 3, 2, 4, 1.0
MOVES = np.array([[1, 2], [0, 2], [2, 0]])
REWARDS = np.array([[1.0, -0.5], [0.3, 2.0], [0.0, -1.0]])
SPACES = Spaces(Discrete(STATES), Discrete(ACTIONS))


def path(actions: tuple[int, ...]) -> tuple[list[int], float]:
    """The states from 0 on, and what comes of it."""
    states, total = [0], 0.0
    for t, a in enumerate(actions):
        total += GAMMA**t * REWARDS[states[-1], a]
        states.append(int(MOVES[states[-1], a]))
    return states, total


def expected(agent: ActorCritic) -> float:
    """The expected return, path by path."""
    x = torch.eye(STATES, dtype=torch.float64)
    with torch.no_grad():
        p = agent.networks(x)[0].softmax(1).numpy()
    total = 0.0
    for actions in itertools.product(range(ACTIONS), repeat=HORIZON):
        states, come = path(actions)
        total += np.prod([p[s, a] for s, a in zip(states, actions, strict=False)]) * come
    return total


def episode(actions: tuple[int, ...]) -> Steps:
    states, _ = path(actions)
    s = torch.tensor(states)
    rewards = torch.tensor([[REWARDS[a, b]] for a, b in zip(states, actions, strict=False)])
    end = torch.zeros(HORIZON, 1, dtype=torch.bool)
    end[-1] = True
    return Steps(s[:-1, None], torch.tensor(actions)[:, None], rewards, end, torch.zeros_like(end), s[1:, None])


@pytest.mark.parametrize("baseline", ["none", "value"])
def test_the_expected_gradient_is_that_of_the_expected_return(baseline: str) -> None:
    method = Reinforce(gamma=GAMMA, baseline=baseline, standardise=False, value_weight=0.0)
    agent = method.agent(SPACES, MLP(hidden=(5,)), seed=0).double()
    theta = agent.networks.theta
    with torch.no_grad():
        theta += 0.5 * torch.randn(theta.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradient = torch.zeros_like(theta)
    for actions in itertools.product(range(ACTIONS), repeat=HORIZON):
        steps = episode(actions)
        x = SPACES.vector(steps.observations.flatten(0, 1)).double()
        done = steps.actions.flatten(0, 1)
        with torch.no_grad():
            chance = agent.opinion(x, done).log_prob().sum().exp()
        loss, _ = method.loss(agent, x, done, method.returns(agent, steps))
        gradient += chance * -HORIZON * torch.autograd.grad(loss, theta)[0]  # a loss is a mean over steps
    wanted, step = torch.zeros_like(theta), 1e-5
    with torch.no_grad():
        for i in range(len(theta)):
            theta[i] += step
            above = expected(agent)
            theta[i] -= 2 * step
            wanted[i] = (above - expected(agent)) / (2 * step)
            theta[i] += step
    assert float(wanted.abs().max()) > 0.1
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("baseline", [False, True])
def test_qac_weighs_by_its_critic_and_learns_from_the_next_action(baseline: bool) -> None:
    method = QAC(gamma=0.9, value_weight=1.0, entropy_weight=0.0, baseline=baseline, standardise=False)
    agent = method.agent(SPACES, MLP(hidden=()), seed=0)
    steps = Steps(*(t[:2] for t in vars(episode((0, 1, 0, 1))).values() if isinstance(t, torch.Tensor)))
    q = agent.critic.weights(agent.critic.theta.detach()).last[0][0]
    q.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    loss, metrics = method.loss(agent, steps, torch.tensor([[1], [0]]))
    # 0 -0-> 1 (then 1: 4.0), and 1 -1-> 2 (then 0: 5.0)
    errors = np.array([1.0 + 0.9 * 4.0 - 1.0, 2.0 + 0.9 * 5.0 - 4.0])
    assert float(metrics["value_loss"]) == pytest.approx((errors**2).mean())
    log_p = agent.actor(torch.eye(3))[0].log_softmax(1)
    p = log_p.detach().exp()
    off = (p[0] @ q[0], p[1] @ q[1]) if baseline else (0.0, 0.0)
    by_hand = -((1.0 - off[0]) * log_p[0, 0] + (4.0 - off[1]) * log_p[1, 1]) / 2
    (ours,) = torch.autograd.grad(loss, agent.actor.theta)
    (theirs,) = torch.autograd.grad(by_hand, agent.actor.theta)
    torch.testing.assert_close(ours, theirs)
