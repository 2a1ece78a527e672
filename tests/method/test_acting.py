"""Every method that learns from acting by networks: it takes turns, moves its weights, and does so again the same."""

from __future__ import annotations

import gymnasium
import pytest
import torch

from danlu.acting import ActingMethod, Agent, Turn
from danlu.method.a2c import A2C
from danlu.method.ddpg import DDPG
from danlu.method.descent import descend
from danlu.method.dqn import DQN
from danlu.method.exploring import Exploring
from danlu.method.off_policy_ac import OffPolicyAC
from danlu.method.ppo import PPO
from danlu.method.qac import QAC
from danlu.method.reinforce import Reinforce
from danlu.method.td_neural import TDNeural
from danlu.method.trpo import TRPO
from danlu.parts.network import MLP
from playing import Played

METHODS: dict[str, ActingMethod] = {
    "reinforce": Reinforce(episodes=2, longest=30),
    "reinforce, mean": Reinforce(episodes=2, longest=30, baseline="mean"),
    "qac": QAC(num_steps=4),
    "a2c": A2C(num_steps=4, updates=2),
    "off_policy_ac": OffPolicyAC(num_steps=4),
    "ppo": PPO(num_steps=16, batch_size=8, epochs=2, target_kl=0.5),
    "trpo": TRPO(num_steps=32, critic_epochs=1),
    "ddpg": DDPG(start=8, num_steps=2, batch_size=4),
    "dqn": DQN(start=8, batch_size=4),
    "td_neural": TDNeural(num_steps=4),
}
ENVS = {"discrete": "CartPole-v1", "continuous": "Pendulum-v1"}
CASES = [(name, kind) for name, method in METHODS.items() for kind in sorted(method.acts_in)]


def optimizer_of(agent: Agent, lr: float) -> torch.optim.Optimizer:
    groups = [{"params": group["params"], "lr": lr * group["lr_scale"]} for group in agent.groups()]
    return torch.optim.AdamW(groups, weight_decay=0.0)


def turns(method: ActingMethod, env: str, num: int = 3) -> tuple[torch.Tensor, torch.Tensor, list[float]]:
    """The weights before and after some turns, and the losses."""
    played = Played(env, num_envs=1 if isinstance(method, Reinforce) else 2)
    method.check(played.spaces)
    agent = method.agent(played.spaces, MLP(hidden=(16, 16)), seed=0)
    optimizer = optimizer_of(agent, 1e-2)
    weights = [p for group in agent.groups() for p in group["params"]]
    before = torch.cat([p.detach().flatten() for p in weights])
    losses = []
    for number in range(num):
        said = method.learn(agent, played, Turn(number, number / num, optimizer, seed=number, clip_norm=0.5))
        losses.append(float(said["loss"]))
        assert all(not isinstance(v, torch.Tensor) or (v.dim() == 0 and not v.requires_grad) for v in said.values())
        assert all(p.grad is None for p in agent.parameters())
    return before, torch.cat([p.detach().flatten() for p in weights]), losses


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_turn_moves_every_part_and_the_same_seed_does_the_same(name: str, kind: str) -> None:
    before, after, losses = turns(METHODS[name], ENVS[kind])
    assert float((before != after).float().mean()) > 0.8
    assert torch.isfinite(after).all()
    _, again, the_same = turns(METHODS[name], ENVS[kind])
    assert torch.equal(after, again)
    assert losses == the_same


def test_importance_weights_are_those_of_the_behaviour() -> None:
    method = OffPolicyAC(epsilon=0.4)
    for env in ENVS.values():
        played = Played(env, num_envs=2)
        agent = method.agent(played.spaces, MLP(hidden=(8,)), seed=0)
        steps = played.rollout(agent, 50)
        x, actions = played.spaces.vector(steps.observations.flatten(0, 1)), steps.actions.flatten(0, 1)
        outputs, _, own = agent.networks(x)
        if env == "CartPole-v1":
            p = 0.6 * outputs.softmax(1) + 0.4 / 2
            wanted = p.gather(1, actions[:, None]).squeeze(1).log()
        else:
            wanted = torch.distributions.Normal(outputs, 1.4 * own.exp()).log_prob(actions).sum(1)
        torch.testing.assert_close(steps.said["log_prob"].flatten(), wanted, rtol=1e-4, atol=1e-5)


def test_a_gradient_is_scaled_down_to_what_the_turn_says() -> None:
    slope = torch.tensor([3.0, 0, 4, 0])
    for longest, moved in ((None, 5.0), (7.0, 5.0), (0.5, 0.5)):
        w = torch.nn.Parameter(torch.zeros(4))
        turn = Turn(0, 0.0, torch.optim.SGD([w], lr=1.0), seed=0, clip_norm=longest)
        descend(turn, (w * slope).sum(), [w])
        torch.testing.assert_close(w.detach(), -slope * moved / 5, rtol=1e-5, atol=0)
        assert turn.norms == [5.0]


class Corridor(gymnasium.Env[int, int]):
    """Five places in a row; right leads to a reward at the end, left leads back."""

    observation_space = gymnasium.spaces.Discrete(5)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, **_: object) -> tuple[int, dict[str, object]]:  # type: ignore[override]
        self.place = self.time = 0
        return 0, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, object]]:
        self.place = min(4, self.place + 1) if action else max(0, self.place - 1)
        self.time += 1
        there = self.place == 4
        return self.place, float(there), there, self.time >= 20, {}


@pytest.mark.parametrize(
    ("name", "method", "num", "lr"),
    [
        ("reinforce", Reinforce(episodes=4, gamma=0.9), 40, 2e-2),
        ("qac", QAC(gamma=0.9, num_steps=16), 150, 3e-2),
        ("a2c", A2C(gamma=0.9, num_steps=8), 120, 1e-2),
        ("off_policy_ac", OffPolicyAC(gamma=0.9, num_steps=16), 60, 1e-2),
        ("ppo", PPO(gamma=0.9, num_steps=64, epochs=4), 15, 1e-2),
        ("trpo", TRPO(gamma=0.9, num_steps=64, target_kl=0.05), 15, 1e-2),
        ("dqn", DQN(gamma=0.9, num_steps=16, updates=8, start=100, target_every=20, epsilon=Exploring()), 60, 1e-2),
    ],
)
def test_it_learns_the_way_down_a_corridor(name: str, method: ActingMethod, num: int, lr: float) -> None:
    played = Played(Corridor, num_envs=1 if name in ("reinforce", "dqn") else 4)
    agent = method.agent(played.spaces, MLP(hidden=(16,)), seed=0)
    optimizer = optimizer_of(agent, lr)
    for number in range(num):
        method.learn(agent, played, Turn(number, number / num, optimizer, seed=number, clip_norm=0.5))
    best = agent.act(torch.arange(4), None).actions
    assert best.tolist() == [1, 1, 1, 1]
