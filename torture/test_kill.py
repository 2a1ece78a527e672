"""A run that is killed at random moments, again and again, and taken up each time."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import danlu
from danlu.engine.checkpoint import Checkpoints
from engine.runs import GPT2, assert_same_run, assert_same_tensors, checkpoints, recipe, state, steps

KILLS = 30
STEPS = 500


def made(folder: Path) -> dict[str, Any]:
    """A checkpoint after every update, so that about half of all moments are within the writing of one."""
    return recipe(folder, GPT2, steps=STEPS, eval_every=50, checkpoint_every=1, keep_checkpoints=2)


def written(run: Path) -> int:
    """How many lines of metrics there are."""
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def resumes(run: Path) -> int:
    """How often the run was taken up; -1 before it is there."""
    file = run / "events.jsonl"
    return file.read_text(encoding="utf-8").count('"kind": "resume"') if file.exists() else -1


def wait(process: subprocess.Popen[str], until: Callable[[], bool]) -> None:
    """Until something is so, or the process has ended."""
    while process.poll() is None and not until():
        time.sleep(0.0005)


def lived(folder: Path, seconds: float, *, from_start: bool) -> bool:
    """Start or go on, kill after so long (counted from its first step, or from its start); whether it ended."""
    run = folder / "run"
    if run.exists() and not checkpoints(run):
        shutil.rmtree(run)  # killed before its first checkpoint: there is nothing to go on from
    arguments = ["resume", str(run)] if run.exists() else ["train", str(folder / "recipe.yaml")]
    command = [sys.executable, "-m", "danlu", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    before = resumes(run)
    if not from_start:
        wait(process, lambda: resumes(run) > before)
        rows = written(run)  # cut back by now
        wait(process, lambda: written(run) > rows + 1)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    _, err = process.communicate(timeout=60)
    assert err == "", err
    assert process.returncode in (0, -signal.SIGKILL)
    return process.returncode == 0


@pytest.mark.parametrize("seed", [0])
def test_killed_thirty_times_it_ends_as_the_run_that_was_left_alone(tmp_path: Path, seed: int) -> None:
    randomness = random.Random(seed)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(made(tmp_path)), encoding="utf-8")
    run, kills, moments = tmp_path / "run", 0, []
    while kills < KILLS:
        from_start = kills % 5 == 4
        ended = lived(tmp_path, randomness.uniform(0, 6 if from_start else 0.5), from_start=from_start)
        assert not ended, f"it ended after {kills} kills: make it longer"
        kills += 1
        for step in Checkpoints(run / "checkpoints").steps():
            assert Checkpoints(run / "checkpoints").load(step).step == step  # whole, to the last byte
        moments.append(max(checkpoints(run), default=0))
    print(json.dumps({"checkpoint at each kill": moments}))
    assert len(set(moments)) > KILLS // 2
    assert danlu.resume(run).reason == "done"
    straight = danlu.train(made(tmp_path), f"run.out={tmp_path / 'straight'}").path
    assert steps(run) == list(range(STEPS + 1))
    assert_same_run(run, straight)
    assert_same_tensors(state(run, STEPS), state(straight, STEPS))
    assert not list((run / "checkpoints").glob(".*"))
