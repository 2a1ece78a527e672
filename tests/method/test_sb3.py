"""PPO and A2C against stable-baselines3, on the same steps with the same weights: losses, and weights after updates."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from danlu.acting import Turn
from danlu.method.a2c import A2C
from danlu.method.advantages import OnPolicy
from danlu.method.descent import step
from danlu.method.ppo import PPO
from danlu.parts.actor_critic import ActorCritic
from danlu.parts.network import MLP
from danlu.spaces import Spaces

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.logger import configure

STEPS, ENVS, RATE = 16, 2, 0.3
pytestmark = pytest.mark.filterwarnings("ignore")


def theirs(kind: str, env: str, **settings: Any) -> Any:
    from stable_baselines3.common.env_util import make_vec_env

    policy = {"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {}}
    given = {"n_steps": STEPS, "learning_rate": RATE, "policy_kwargs": policy, "seed": 0, "device": "cpu", **settings}
    model = getattr(sb3, kind)("MlpPolicy", make_vec_env(env, ENVS, seed=0), **given)
    model.set_logger(configure(None, []))
    model._setup_learn(STEPS * ENVS)
    return model


def copied(model: Any, agent: ActorCritic) -> None:
    """Give our agent their weights."""
    weights, policy = agent.networks.weights(agent.networks.theta), model.policy
    nets = (policy.mlp_extractor.policy_net, policy.mlp_extractor.value_net)
    with torch.no_grad():
        for layer, (matrix, bias) in enumerate(weights.hidden):
            for k, net in enumerate(nets):
                matrix[k].copy_(net[2 * layer].weight.T)
                bias[k, 0].copy_(net[2 * layer].bias)
        for (matrix, bias), last in zip(weights.last, (policy.action_net, policy.value_net), strict=True):
            matrix.copy_(last.weight.T)
            bias.copy_(last.bias)
        if weights.own.numel():
            weights.own.copy_(policy.log_std)


def filled(model: Any) -> OnPolicy:
    """Their buffer after a rollout, its numbers then made wild; and the same as our batch, environment by environment."""
    from stable_baselines3.common.callbacks import BaseCallback

    class Silent(BaseCallback):
        def _on_step(self) -> bool:
            return True

    callback = Silent()
    callback.init_callback(model)
    buffer, chance = model.rollout_buffer, np.random.default_rng(0)
    model.collect_rollouts(model.env, callback, buffer, STEPS)
    buffer.log_probs += 0.4 * chance.normal(size=buffer.log_probs.shape).astype(np.float32)
    buffer.advantages[:] = chance.normal(size=buffer.advantages.shape)
    buffer.returns[:] = 3 * chance.normal(size=buffer.returns.shape)
    columns = (buffer.observations, buffer.actions, buffer.log_probs, buffer.values, buffer.advantages, buffer.returns)
    x, actions, *rest = (torch.from_numpy(c.reshape(STEPS * ENVS, *c.shape[2:])) for c in columns)
    discrete = isinstance(model.action_space, gymnasium.spaces.Discrete)
    return OnPolicy(x, actions[:, 0].long() if discrete else actions, *rest)


def same(model: Any, agent: ActorCritic, settled: ActorCritic) -> None:
    copied(model, settled)
    torch.testing.assert_close(agent.networks.theta, settled.networks.theta, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("value_clip", [None, 0.2])
def test_ppo(env: str, value_clip: float | None) -> None:
    epochs = 4
    shared = {"batch_size": STEPS * ENVS, "n_epochs": epochs, "ent_coef": 0.02, "vf_coef": 0.4, "clip_range": 0.15}
    model = theirs("PPO", env, clip_range_vf=value_clip, max_grad_norm=0.3, **shared)
    method = PPO(
        num_steps=STEPS, batch_size=STEPS * ENVS, epochs=epochs, entropy_weight=0.02, value_weight=0.4, clip_range=0.15,
        value_clip=value_clip,
    )  # fmt: skip
    spaces = Spaces(model.observation_space, model.action_space)
    agent, settled = (method.agent(spaces, MLP(), seed=s) for s in (0, 1))
    copied(model, agent)
    start = agent.networks.theta.detach().clone()
    batch = filled(model)
    turn = Turn(0, 0.0, torch.optim.SGD([agent.networks.theta], lr=RATE), seed=0, clip_norm=0.3)
    for minibatch in method.minibatches(batch, torch.Generator()):
        passed = agent.networks.passed(minibatch.x)
        said = agent.opinion_of(passed.said, minibatch.actions)
        loss, metrics = method.loss(said, minibatch, method.clip_range)
        slope = method.slope(said, minibatch, said.log_prob() - minibatch.log_prob, method.clip_range)
        agent.networks.pull(passed, slope)
        step(turn, [agent.networks.theta])
    model.train()
    assert float(loss) == pytest.approx(model.logger.name_to_value["train/loss"], rel=1e-4, abs=1e-5)
    assert 0 < float(metrics["clipped"]) < 1
    assert float((agent.networks.theta - start).abs().max()) > 1e-2
    same(model, agent, settled)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_a2c(env: str) -> None:
    model = theirs("A2C", env, ent_coef=0.02, vf_coef=0.4, max_grad_norm=0.3)
    method = A2C(num_steps=STEPS, entropy_weight=0.02, value_weight=0.4)
    agent, settled = (method.agent(Spaces(model.observation_space, model.action_space), MLP(), seed=s) for s in (0, 1))
    copied(model, agent)
    start = agent.networks.theta.detach().clone()
    batch = filled(model)
    passed = agent.networks.passed(batch.x)
    said = agent.opinion_of(passed.said, batch.actions)
    _, metrics = method.loss(said, batch)
    agent.networks.pull(passed, method.slope(said, batch))
    optimizer = torch.optim.SGD([agent.networks.theta], lr=RATE)
    step(Turn(0, 0.0, optimizer, seed=0, clip_norm=0.3), [agent.networks.theta])
    model.train()
    told = model.logger.name_to_value
    for ours, name in (("policy_loss", "train/policy_loss"), ("value_loss", "train/value_loss")):
        assert float(metrics[ours]) == pytest.approx(told[name], rel=1e-4, abs=1e-5)
    assert float((agent.networks.theta - start).abs().max()) > 1e-2
    same(model, agent, settled)


def test_advantages_of_a_rollout_are_theirs() -> None:
    from danlu.method.advantages import advantages_of

    model = theirs("PPO", "CartPole-v1", gamma=0.95, gae_lambda=0.9, batch_size=8)
    filled(model)
    buffer, chance = model.rollout_buffer, np.random.default_rng(1)
    ended = chance.random((STEPS, ENVS)) < 0.2
    buffer.rewards[:], buffer.values[:] = chance.normal(size=(2, STEPS, ENVS))
    buffer.episode_starts[1:] = ended[:-1]
    last = chance.normal(size=ENVS).astype(np.float32)
    buffer.compute_returns_and_advantage(torch.from_numpy(last), ended[-1])
    following = np.concatenate([buffer.values[1:], last[None]])
    given = (buffer.rewards, buffer.values, following, ended, np.zeros_like(ended))
    np.testing.assert_allclose(advantages_of(*given, gamma=0.95, lam=0.9), buffer.advantages, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize(
    "method", [A2C(entropy_weight=0.1), PPO(entropy_weight=0.1), PPO(value_clip=0.2)], ids=["a2c", "ppo", "value clip"]
)
def test_a_slope_written_out_is_the_gradient_of_its_loss(env: str, method: A2C | PPO) -> None:
    played = gymnasium.make(env)
    agent = method.agent(Spaces(played.observation_space, played.action_space), MLP(hidden=(8,)), seed=0).double()
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        agent.networks.theta += 0.3 * torch.randn(agent.networks.theta.shape, generator=chance, dtype=torch.float64)
    x = torch.randn(64, agent.spaces.features, generator=chance, dtype=torch.float64)
    drawn, log_prob = agent.family.draw(*agent.outputs(x.numpy()), chance)
    noise = torch.randn(4, 64, generator=chance, dtype=torch.float64)
    actions = torch.from_numpy(drawn)
    batch = OnPolicy(x, actions, torch.from_numpy(log_prob) + 0.4 * noise[0], *noise[1:])
    passed = agent.networks.passed(x)
    said = agent.opinion_of(passed.said, actions)
    again = agent.opinion(x, actions)
    if isinstance(method, PPO):
        slope = method.slope(said, batch, said.log_prob() - batch.log_prob, 0.2)
        loss, _ = method.loss(again, batch, 0.2)
    else:
        slope, (loss, _) = method.slope(said, batch), method.loss(again, batch)
    agent.networks.pull(passed, slope)
    (wanted,) = torch.autograd.grad(loss, agent.networks.theta)
    torch.testing.assert_close(agent.networks.theta.grad, wanted, rtol=1e-9, atol=1e-12)
