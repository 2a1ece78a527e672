"""Runs that are killed at any moment and taken up again, in processes that have all their imports from the start."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import danlu
from danlu import cli
from danlu.engine import device
from danlu.engine.checkpoint import Checkpoints
from danlu.errors import RunError

from .runs import GPT2, assert_same_run, assert_same_tensors, checkpoints, recipe, state, steps

STEPS = 24
PATIENCE = 120.0
"""Seconds after which a life hangs."""
_FILES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.symlink", "shutil.rmtree"}
"""What a process does to folders, as it is audited; beside the files that it opens to write them."""

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    ["danlu.cli", "danlu.console", "danlu.training", "danlu.engine.stored", "plotly.offline", "torch._dynamo"]
)


@dataclass(frozen=True)
class Life:
    """How one went.

    Attributes:
        status: what it ended with; of one that was killed, the signal's negative number.
        said: on both streams.
        seconds: that it took.
        acts: what it did to files, where it ended by itself.
    """

    status: int
    said: str
    seconds: float
    acts: int


def live(
    folder: Path, arguments: Sequence[str | Path], *, acts: int | None = None, seconds: float | None = None
) -> Life:
    """A command in a process of its own, killed before it has done so much to files, or after so many seconds.

    Raises:
        AssertionError: when it hangs; it has said where.
    """
    log, begun = folder / "log", time.monotonic()
    log.write_text("")
    process = _processes.Process(target=_live, args=(log, [*map(str, arguments)], acts))
    process.start()
    process.join(PATIENCE if seconds is None else seconds)
    if seconds is not None:
        process.kill()
        process.join()
    elif process.is_alive():
        os.kill(process.pid or 0, signal.SIGABRT)
        process.join()
        raise AssertionError(f"it hangs:\n{log.read_text(encoding='utf-8')}")
    done = log.with_suffix(".acts")
    count = int(done.read_text()) if process.exitcode == 0 else 0
    return Life(process.exitcode or 0, log.read_text(encoding="utf-8"), time.monotonic() - begun, count)


def _live(log: Path, arguments: list[str], last: int | None) -> None:
    import faulthandler

    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    faulthandler.enable()
    device._measured_peak = lambda *_: 1e12  # type: ignore[assignment]  # which takes as long as all the rest
    acts = 0

    def note(event: str, args: Any) -> None:
        nonlocal acts
        if event in _FILES or (event == "open" and _writes(args)):
            acts += 1
            if acts == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(note)
    sys.argv = ["danlu", *arguments]
    status = cli._status()
    log.with_suffix(".acts").write_text(str(acts))
    sys.exit(status)


def _writes(args: Any) -> bool:
    _, _, flags = args
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


class Trials:
    """Runs of one recipe, each in a folder of its own; what they should come to is that of one that was left alone.

    Args:
        folder: where.
        overrides: of the recipe.
    """

    def __init__(self, folder: Path, **overrides: Any) -> None:
        self._folder, self._overrides = folder, overrides
        self.straight = self._made("straight") / "run"
        self.left_alone = live(self.straight.parent, ["train", self.straight.parent / "recipe.yaml"])
        assert self.left_alone.status == 0, self.left_alone.said

    def _made(self, name: str) -> Path:
        folder = self._folder / name
        folder.mkdir()
        made = recipe(folder, GPT2, **{**USUAL, **self._overrides})
        (folder / "recipe.yaml").write_text(yaml.safe_dump(made), encoding="utf-8")
        return folder

    def trial(self, seed: int, deaths: int) -> list[int]:
        """A run that is killed so often and then comes to its end; the steps of its checkpoints at each death."""
        randomness, folder = random.Random(seed), self._made(f"trial{seed}")
        run, found = folder / "run", []
        while len(found) < deaths:
            if randomness.random() < 0.5:
                life = live(folder, self._command(folder), acts=randomness.randint(1, self.left_alone.acts))
            else:
                life = live(folder, self._command(folder), seconds=randomness.uniform(0, self.left_alone.seconds))
            assert life.status in (0, -signal.SIGKILL), life.said
            assert "Traceback" not in life.said, life.said
            if life.status == 0:  # it was done before its time had come
                shutil.rmtree(run)
                continue
            saved = Checkpoints(run / "checkpoints")
            assert all(saved.load(step).step == step for step in saved.steps())
            found.append(max(saved.steps(), default=0))
        life = live(folder, self._command(folder))
        assert life.status == 0, life.said
        self._compare(run)
        shutil.rmtree(folder)
        return found

    def _command(self, folder: Path) -> list[str | Path]:
        """What a user does next."""
        run = folder / "run"
        if not run.exists():
            return ["train", folder / "recipe.yaml"]
        if checkpoints(run):
            return ["resume", run]
        with pytest.raises(RunError) as told:
            danlu.resume(run)
        assert "no run: it has no recipe.yaml" in str(told.value) or "ended before its first checkpoint" in str(
            told.value
        )
        shutil.rmtree(run)
        return ["train", folder / "recipe.yaml"]

    def _compare(self, run: Path) -> None:
        assert_same_run(run, self.straight)
        last = self._overrides.get("steps", STEPS)
        assert steps(run) == list(range(last + 1))
        assert_same_tensors(state(run, last), state(self.straight, last))
        for at in (".", "checkpoints", "final"):
            assert names(run / at) == names(self.straight / at), at


USUAL: dict[str, Any] = {"steps": STEPS, "eval_every": 8, "checkpoint_every": 2, "keep_checkpoints": 2}


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())
