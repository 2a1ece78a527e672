"""Rows and events of runs that learned from acting, as training writes them, made without acting."""

from __future__ import annotations

import math

import numpy as np

Rows = list[dict[str, object]]

RECIPE = """\
method:
  name: ppo
data:
  env: CartPole-v1
run:
  name: cartpole
  seed: 0
"""
WORLD: dict[str, object] = {
    "time": 1.0,
    "kind": "world",
    "env": "CartPole-v1",
    "num_envs": 8,
    "observation": "Box(4)",
    "action": "Discrete(2)",
}


def deep_rows(turns: int, *, seed: int = 0, env_steps: int = 1024, best: float = 480.0) -> Rows:
    """A policy gradient on CartPole: returns rise from 20 and level off, with noise; measured ten times."""
    rng = np.random.default_rng(seed)
    rows: Rows = [{"step": 0, "held_out_return": 21.0, "held_out_return_std": 4.0, "held_out_episodes": 10}]
    for turn in range(1, turns + 1):
        true = 20 + (best - 20) * (1 - math.exp(-8 * turn / turns))
        row: dict[str, object] = {
            "step": turn,
            "loss": 2.0 / turn + 0.1 * float(rng.normal()),
            "policy_loss": -0.02 * float(rng.random()),
            "value_loss": 40.0 / turn,
            "entropy": 0.69 * math.exp(-turn / turns),
            "kl": 0.01 * float(rng.random()),
            "squashed_surprise": float(rng.random()),
            "env_steps": env_steps,
            "total_env_steps": env_steps * turn,
            "episodes": 5,
            "episode_length": true,
            "seconds": 0.5,
            "steps_per_second": 2 * env_steps,
            "lr": 3e-4 * (1 - turn / turns),
            "grad_norm": 0.5,
            "memory_bytes": 3 * 2**28,
        }
        if turn % 3:  # no episode ended in every third turn
            row["return"] = true + 15 * float(rng.normal())
        if turn % max(turns // 10, 1) == 0:
            row |= {"held_out_return": true, "held_out_return_std": 12.0, "held_out_episodes": 10}
        rows.append(row)
    return rows


def deep_events(turns: int) -> Rows:
    """Beside what every run writes: the agent, its world, the end."""
    model = {"time": 1.0, "kind": "model", "agent": "actor and critic", "parameters": 9155, "trainable": 9155}
    end = {"time": 9.0, "kind": "end", "step": turns, "reason": "done", "seconds": 8.0}
    return [{"time": 0.0, "kind": "start", "steps": turns}, dict(model), WORLD, dict(end)]


GRID: dict[str, object] = {
    "kind": "world",
    "env": "gridworld",
    "num_envs": 1,
    "states": 6,
    "actions": 5,
    "height": 2,
    "width": 3,
    "cells": {"forbidden": [1], "target": 5},
}
"""
    0  1x 2
    3  4  5T
"""


def grid_events(values: list[list[float]], actions: list[int]) -> Rows:
    """A world of two rows of three cells, its values as they were measured ten turns apart."""
    told: Rows = [
        {"time": 2.0 + step, "kind": "values", "step": 10 * step, "values": each, "actions": actions}
        for step, each in enumerate(values)
    ]
    return [{"time": 0.0, "kind": "start"}, {"time": 1.0, **GRID}, *told]


def estimate_rows(steps: int, root: float = 2.5) -> Rows:
    """Robbins-Monro: an error that falls as one over the square root of the steps."""
    return [
        {"step": n, "estimate": root + n**-0.5, "error": n**-0.5, "step_size": 1 / n, "loss": 1 / n}
        for n in range(1, steps + 1)
    ]
