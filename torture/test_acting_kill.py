"""Agents whose runs are killed while they learn, and taken up each time, end as if they had been left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

RUNS: dict[str, tuple[str, ...]] = {
    "ppo": ("data.env=CartPole-v1", "data.env_steps=40000", "data.normalize_observations=true"),
    "ddpg": (
        "data.env=Pendulum-v1",
        "data.env_steps=4000",
        "method.start=500",
        "method.batch_size=32",
        "method.buffer_size=1500",
        "model.hidden=[32]",
    ),
    "q_learning": ("data.env=gridworld", "run.steps=4000", "method.steps=100"),
}
"""A run of each kind of experience: rollouts, a replay that comes around, a table."""
NOISY = ("seconds", "steps_per_second", "memory_bytes")
TRIALS = 4


def command(name: str, out: Path) -> list[str]:
    """What trains, or goes on where there is something to go on from."""
    danlu = [sys.executable, "-m", "danlu"]
    if any((out / "checkpoints").glob("step-*")):
        return [*danlu, "resume", str(out)]
    recipe = name
    if name == "q_learning":
        recipe = str(out.parent / "table.yaml")
        Path(recipe).write_text("method: q_learning\n", encoding="utf-8")
    often = ("data.eval_episodes=2", "data.eval_steps=50", "run.checkpoint_every=3", "run.threads=1")
    return [*danlu, "train", recipe, *RUNS[name], *often, f"run.out={out}"]


def rows(run: Path) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in NOISY} for row in lines]


def live(name: str, out: Path, seconds: float | None) -> bool:
    """One process, killed after so long; whether it came to its end."""
    if out.exists() and not any((out / "checkpoints").glob("step-*")):
        subprocess.run(["rm", "-rf", str(out)], check=True)  # killed before there was anything to go on from
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command(name, out), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return False
    assert process.returncode == 0, said.decode()
    return True


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_agent_ends_in_the_same_bytes(name: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole" / "run"
    whole.parent.mkdir()
    start = time.monotonic()
    assert live(name, whole, None)
    took = time.monotonic() - start
    kills = 0
    for trial in range(TRIALS):
        chance, run = random.Random(trial), tmp_path / str(trial) / "run"
        run.parent.mkdir()
        for _ in range(3):
            kills += not live(name, run, chance.uniform(0.25, 0.55) * took)
        while not live(name, run, None):
            pass
        assert rows(run) == rows(whole)
        found, expected = ((path / "final" / "model.safetensors").read_bytes() for path in (run, whole))
        assert found == expected
    assert kills > TRIALS
