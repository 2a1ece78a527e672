"""The built-in recipes learn what they say: each reaches a return, its policy then acting as it thinks best."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from danlu.acting import ActingMethod, Turn
from danlu.parts.network import MLP
from danlu.random import fold
from danlu.registry import lookup
from playing import Played

EPISODES = 20
BARS = {
    "ppo": ("CartPole-v1", 475.0),
    "a2c": ("CartPole-v1", 400.0),
    "trpo": ("CartPole-v1", 475.0),
    "dqn": ("CartPole-v1", 150.0),
    "reinforce": ("CartPole-v1", 300.0),
    "off_policy_ac": ("CartPole-v1", 200.0),
    "qac": ("CartPole-v1", 100.0),
    "ddpg": ("Pendulum-v1", -250.0),
}
"""Where a median of seeds must come to; the zoo's policies have 500, and -152 on the pendulum."""


def learned(recipe: dict[str, Any], seed: int) -> float:
    """The mean return of what a recipe learns."""
    fields, network = dict(recipe["method"]), {k: v for k, v in recipe["model"].items() if k != "name"}
    method: ActingMethod = lookup("method", fields.pop("name"))(**fields)
    data, rule = recipe["data"], recipe["optimizer"]
    played = Played(data["env"], data["num_envs"], seed=1000 * seed)
    agent = method.agent(played.spaces, MLP(**network), seed)
    groups = [{"params": g["params"], "lr": float(rule["lr"]) * g["lr_scale"]} for g in agent.groups()]
    eps = float(rule.get("eps", 1e-8))
    optimizer = torch.optim.AdamW(groups, betas=tuple(rule["betas"]), eps=eps, weight_decay=0.0, fused=True)
    full, number = [group["lr"] for group in optimizer.param_groups], 0
    while (share := played.env_steps / data["env_steps"]) < 1:
        for group, lr in zip(optimizer.param_groups, full, strict=True):
            group["lr"] = lr * (1 - share if rule["schedule"]["name"] == "wsd" else 1)
        method.learn(agent, played, Turn(number, share, optimizer, fold(seed, number), rule["clip_norm"]))
        number += 1
    trial = Played(data["env"], 1, seed=1000 * seed + 500)
    while len(trial.returns) < EPISODES:
        trial.rollout(agent, 1, explore=False)
    return float(np.mean(trial.returns))


@pytest.mark.parametrize("name", BARS)
def test_a_recipe_reaches_its_return(name: str) -> None:
    recipe = yaml.safe_load(files("danlu").joinpath("recipes", f"{name}.yaml").read_text())
    env, bar = BARS[name]
    assert recipe["data"]["env"] == env
    found = [learned(recipe, seed) for seed in range(3)]
    print(f"{name}: {found}")
    assert np.median(found) >= bar
