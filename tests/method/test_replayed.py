"""Methods that learn from steps of long ago: targets by hand, and gradients against autograd's own."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from pydantic import ValidationError

from danlu.acting import Steps, Turn
from danlu.errors import UnsupportedError
from danlu.method.ddpg import DDPG, DeterministicAgent
from danlu.method.dqn import DQN, QAgent
from danlu.method.exploring import Exploring
from danlu.method.td_neural import TDNeural
from danlu.parts.network import MLP
from danlu.spaces import Spaces
from playing import Played

STATES = Discrete(3)
ENDS = torch.tensor([[False], [True], [False]])
CUT = torch.tensor([[False], [False], [True]])
REWARDS = torch.tensor([[1.0], [2.0], [3.0]])


def seen(*states: int) -> torch.Tensor:
    return torch.tensor(states)[:, None]


def linear(agent: QAgent, name: str, table: list[list[float]]) -> None:
    network = getattr(agent, name)
    with torch.no_grad():
        network.weights(network.theta).last[0][0].copy_(torch.tensor(table))


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("start", [0, 7])
def test_dqns_target_and_loss_by_hand(double: bool, start: int) -> None:
    method = DQN(gamma=0.5, double=double)
    agent = method.agent(Spaces(STATES, Discrete(2, start=start)), MLP(hidden=(), initial="orthogonal"), seed=0)
    linear(agent, "q", [[0.0, 1.0], [2.0, 0.0], [0.5, 0.0]])
    linear(agent, "target", [[10.0, 4.0], [6.0, 8.0], [20.0, 30.0]])
    steps = Steps(seen(0, 1, 2), start + seen(1, 0, 0), REWARDS, ENDS, CUT, seen(1, 2, 0))
    # 0 -> 1; 1 -> 2, ended; 2 -> 0, cut: it goes on
    wanted = [1 + 0.5 * (6.0 if double else 8.0), 2.0, 3 + 0.5 * (4.0 if double else 10.0)]
    assert method.targets(agent, steps).tolist() == wanted
    errors = np.abs(np.array([1.0, 2.0, 0.5]) - wanted)
    huber = np.where(errors < 1, errors**2 / 2, errors - 0.5).mean()
    assert float(method.loss(agent, steps).detach()) == pytest.approx(huber)


def test_dqn_learns_from_what_it_remembers_and_its_target_stands_still_in_between() -> None:
    falling = Exploring(start=1.0, end=0.1, over=0.5)
    method = DQN(num_steps=8, updates=3, start=20, batch_size=16, target_every=5, epsilon=falling)
    played = Played("CartPole-v1")
    agent = method.agent(played.spaces, MLP(hidden=(16,), activation="relu"), seed=0)
    optimizer = torch.optim.AdamW(agent.groups()[0]["params"], lr=1e-2)
    assert torch.equal(agent.q.theta, agent.target.theta)
    targets = []
    for number in range(5):
        said = method.learn(agent, played, Turn(number, number / 4, optimizer, seed=number))
        targets.append(agent.target.theta.clone())
        assert said["epsilon"] == pytest.approx(max(0.1, 1 - 0.9 * (number / 4) / 0.5))
    assert len(played) == 24 + 4 * 8
    assert int(agent.updates) == 15
    assert [torch.equal(a, b) for a, b in pairwise(targets)] == [False, True, False, True]
    assert not any(p.requires_grad for p in agent.target.parameters())
    best = agent.act(torch.zeros(4, 4), None).actions
    assert (best == best[0]).all()
    agent.epsilon = 1.0
    assert len(set(agent.act(torch.zeros(64, 4), torch.Generator().manual_seed(0)).actions.tolist())) == 2


def test_td_learns_the_values_of_a_chain_it_can_say() -> None:
    method = TDNeural(gamma=0.5)
    agent = method.agent(Spaces(STATES, Discrete(2)), MLP(hidden=()), seed=0)
    with torch.no_grad():
        agent.critic.weights(agent.critic.theta).last[0][0].copy_(torch.tensor([[1.0], [2.0], [4.0]]))
    steps = Steps(seen(0, 1, 2), seen(1, 0, 0), REWARDS, ENDS, CUT, seen(1, 2, 0))
    errors = np.array([1 + 0.5 * 2 - 1, 2 - 2, 3 + 0.5 * 1 - 4])
    loss = method.loss(agent, steps)
    assert float(loss.detach()) == pytest.approx((errors**2).mean())
    (slope,) = torch.autograd.grad(loss, agent.critic.theta)
    torch.testing.assert_close(slope[:3], torch.from_numpy(-2 * errors / 3).float())  # of V(s) alone, not of V(s')


def deterministic() -> tuple[DDPG, DeterministicAgent, Steps]:
    method = DDPG(gamma=0.9, noise=0.2, start=10, num_steps=4, batch_size=8)
    spaces = Spaces(Box(-1, 1, (3,)), Box(np.array([-2, 0], np.float32), np.array([2, 1], np.float32)))
    agent = method.agent(spaces, MLP(hidden=(8, 6), activation="relu", initial="uniform"), seed=0).double()
    chance = torch.Generator().manual_seed(0)
    actions = torch.tensor([[[-2.0, 0.0]], [[2.0, 1.0]], [[0.0, 0.5]]]).double()
    first, after = (torch.rand(3, 1, 3, generator=chance).double() for _ in range(2))
    return method, agent, Steps(first, actions, REWARDS.double(), ENDS, CUT, after)


def test_ddpgs_actor_climbs_the_gradient_of_its_critic() -> None:
    method, agent, steps = deterministic()
    x = steps.observations[:, 0]
    (ours,) = torch.autograd.grad(method.actor_loss(agent, x), agent.actor.theta)
    a = agent.actor.differentiable(x)[0].tanh()
    values = agent.critic.differentiable(torch.cat([x, a], 1))[0]
    (climbs,) = torch.autograd.grad(values.mean(), agent.actor.theta, retain_graph=True)
    torch.testing.assert_close(ours, -climbs, rtol=1e-9, atol=1e-12)
    # the deterministic policy gradient theorem: grad_theta mu(s) grad_a Q(s, a) at a = mu(s)
    (slope,) = torch.autograd.grad(values.sum(), a, retain_graph=True)
    (chained,) = torch.autograd.grad(a, agent.actor.theta, slope / len(x))
    torch.testing.assert_close(ours, -chained, rtol=1e-9, atol=1e-12)
    assert agent.critic.theta.grad is None


def test_ddpgs_target_and_actions_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    method, agent, steps = deterministic()
    with torch.no_grad():
        agent.target_critic.theta.mul_(1.5)
        after = torch.from_numpy(agent.target_actor.answer(0, steps.following[:, 0].numpy())).tanh()
        values = agent.target_critic.answer(0, torch.cat([steps.following[:, 0], after], 1).numpy())[:, 0]
    monkeypatch.setattr(type(agent.spaces), "vector", lambda self, seen: seen.double())
    wanted = REWARDS[:, 0].double() + 0.9 * torch.from_numpy(values) * torch.tensor([1.0, 0.0, 1.0])
    torch.testing.assert_close(method.targets(agent, steps), wanted)
    assert agent.inner(steps.actions[:, 0]).tolist() == [[-1, -1], [1, 1], [0, 0]]
    with torch.no_grad():
        agent.actor.weights(agent.actor.theta).last[0][1].copy_(torch.tensor([30.0, -30.0]))
    assert agent.act(steps.observations[:, 0], None).actions.tolist() == [[2.0, 0.0]] * 3
    astray = agent.act(steps.observations[:, 0], torch.Generator().manual_seed(0)).actions
    assert (astray[:, 0] <= 2).all()
    assert (astray[:, 1] >= 0).all()
    assert not torch.equal(astray, agent.act(steps.observations[:, 0], None).actions)


def test_ddpgs_targets_follow_by_their_share_and_its_first_steps_are_chosen_evenly() -> None:
    method = DDPG(start=12, num_steps=3, batch_size=8, tau=0.25)
    played = Played("Pendulum-v1", num_envs=2)
    agent = method.agent(played.spaces, MLP(hidden=(8,), activation="relu"), seed=0)
    optimizer = torch.optim.AdamW([p for group in agent.groups() for p in group["params"]], lr=1e-2, weight_decay=0.0)
    targets, networks = (agent.target_actor, agent.target_critic), (agent.actor, agent.critic)
    assert all(torch.equal(t.theta, n.theta) for t, n in zip(targets, networks, strict=True))
    before = [n.theta.detach().clone() for n in networks]
    method.learn(agent, played, Turn(0, 0.0, optimizer, seed=0))
    assert played.env_steps == 12 + 3 * 2
    first = np.stack([row[1] for row in played._rows[:12]])
    assert first.min() < -1
    assert first.max() > 1
    assert not any(torch.equal(b, n.theta) for b, n in zip(before, networks, strict=True))
    one = [t.theta.clone() for t in targets]
    method.follow(agent)
    for was, target, network in zip(one, targets, networks, strict=True):
        torch.testing.assert_close(target.theta, 0.75 * was + 0.25 * network.theta.detach())


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValidationError, match="would never begin"):
        DQN(start=100, buffer_size=10)
    with pytest.raises(ValidationError, match="would never begin"):
        DDPG(start=100, buffer_size=10)
    endless = Spaces(Box(-1, 1, (3,)), Box(-np.inf, np.inf, (2,)))
    with pytest.raises(UnsupportedError, match="between bounds"):
        DDPG().check(endless)
    with pytest.raises(UnsupportedError, match="between bounds"):
        TDNeural().check(endless)
    with pytest.raises(UnsupportedError, match="discrete"):
        DQN().check(endless)
