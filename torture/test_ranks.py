"""Ranks that are killed, signalled, or cannot write, as `torchrun` has them."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import danlu
from danlu.engine.checkpoint import Checkpoints
from engine.runs import QWEN3, assert_same_run, assert_same_tensors, checkpoints, lines, recipe, steps
from launching import Launch

STEPS = 60
MODES = ("ddp", "zero3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ranks")
    (made / "recipe.yaml").write_text(yaml.safe_dump(recipe(made, QWEN3, **USUAL)), encoding="utf-8")
    return made


USUAL: dict[str, Any] = {"steps": STEPS, "eval_every": 10, "checkpoint_every": 2, "keep_checkpoints": 3}


@pytest.fixture(scope="module")
def straight(folder: Path) -> dict[str, tuple[Path, float]]:
    """Runs that nobody killed, and how long each took."""
    found = {}
    for mode in MODES:
        begun = time.monotonic()
        launch(folder, mode, "train", folder / "recipe.yaml", f"run.out={folder / mode}", f"run.parallel={mode}")
        found[mode] = (folder / mode, time.monotonic() - begun)
    return found


def launch(folder: Path, name: str, *arguments: str | Path) -> None:
    """To the end."""
    with Launch(*arguments) as launched:
        status, _, err = launched.end()
    assert status == 0, err


def same(run: Path, expected: Path) -> None:
    """To the bit, and no step twice."""
    assert_same_run(run, expected)
    assert steps(run) == list(range(STEPS + 1))
    one, two = (Checkpoints(each / "checkpoints").load(STEPS) for each in (run, expected))
    for file in ("model", "optimizer"):
        assert_same_tensors(dict(one.tensors[file]), dict(two.tensors[file]))
    assert checkpoints(run) == checkpoints(expected)
    assert not [entry.name for entry in (run / "checkpoints").iterdir() if entry.name.startswith(".")]


def no_traceback(err: str) -> None:
    """The last words of a rank are a sentence; what `torchrun` says of itself is its own."""
    assert str(Path(danlu.__file__).parent) not in err, err
    assert "Fatal Python error" not in err, err


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("trial", range(4))
def test_a_rank_is_killed_and_the_run_goes_on_by_itself(
    folder: Path, straight: dict[str, tuple[Path, float]], mode: str, rank: int, trial: int
) -> None:
    """At a random moment of all its life; of every other trial, and once more when it has been replaced."""
    expected, seconds = straight[mode]
    randomness = random.Random(100 * trial + 10 * rank + len(mode))
    run = folder / f"{mode} {rank} {trial}"
    command = ("train", folder / "recipe.yaml", f"run.out={run}", f"run.parallel={mode}")
    with Launch(*command, restarts=3) as launched:
        for _ in range(1 + trial % 2):
            until = time.monotonic() + randomness.uniform(0.1 * seconds, seconds)
            launched.wait(lambda until=until: time.monotonic() > until)  # type: ignore[misc]
            if launched.alive:
                launched.send(signal.SIGKILL, rank)
        status, _, err = launched.end()
    no_traceback(err)
    assert status == 0, err
    same(run, expected)


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("rank", [None, 0, 1])
def test_a_signal_ends_all_ranks_with_a_checkpoint(
    folder: Path, straight: dict[str, tuple[Path, float]], which: signal.Signals, rank: int | None
) -> None:
    mode = MODES[which == signal.SIGTERM]
    run = folder / f"{which.name} {rank}"
    with Launch("train", folder / "recipe.yaml", f"run.out={run}", f"run.parallel={mode}") as launched:
        launched.wait(lambda: max(checkpoints(run), default=0) >= 5)
        assert launched.send(which, rank)
        status, _, err = launched.end()
    assert status
    no_traceback(err)
    if rank is not None:
        assert f"exitcode: {128 + which}" in err
    assert max(checkpoints(run)) == steps(run)[-1] < STEPS
    assert lines(run / "events.jsonl")[-1]["reason"] == which.name
    launch(folder, mode, "resume", run)
    same(run, straight[mode][0])


@pytest.mark.parametrize("layout", [*MODES, "ring"])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_rank_that_hangs_is_named_and_the_run_goes_on_by_itself(folder: Path, layout: str, rank: int) -> None:
    """Stopped at a random moment, of three; `torchrun` ends it and begins anew when another has ended."""
    run = folder / f"hangs {layout} {rank}"
    ways = ["run.parallel=ddp", "run.context_parallel=3"] if layout == "ring" else [f"run.parallel={layout}"]
    randomness = random.Random(10 * rank + len(layout))
    command = ("train", folder / "recipe.yaml", f"run.out={run}", *ways)
    with Launch(*command, size=3, restarts=1, patience="15s") as launched:
        launched.wait(lambda: max(checkpoints(run), default=0) >= 4)
        until = time.monotonic() + randomness.uniform(0, 2)
        launched.wait(lambda: time.monotonic() > until)
        assert launched.send(signal.SIGSTOP, rank)
        status, _, err = launched.end()
    no_traceback(err)
    assert status == 0, err
    said = [line for line in err.splitlines() if line.startswith("danlu: ")]
    assert said
    for line in said:
        assert f"lost rank {rank}, which gives no sign of life: " in line
    assert steps(run) == list(range(STEPS + 1))
    assert [event["reason"] for event in lines(run / "events.jsonl") if event["kind"] == "end"] == ["done"]


@pytest.mark.parametrize("room", [900_000, 1_100_000, 1_300_000])
@pytest.mark.parametrize("mode", MODES)
def test_a_full_disk_ends_all_ranks_with_one_sentence(
    folder: Path, straight: dict[str, tuple[Path, float]], mode: str, room: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """It fills up while the run goes: another fills it."""
    disk = folder / f"disk {mode} {room}"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk can be mounted by root only")
    try:
        run, ballast = disk / "run", disk / "ballast"
        with Launch("train", folder / "recipe.yaml", f"run.out={run}", f"run.parallel={mode}") as launched:
            launched.wait(lambda: max(checkpoints(run), default=0) >= 4)
            used = sum(file.stat().st_size for file in disk.rglob("*") if file.is_file())
            ballast.write_bytes(bytes((32 << 20) - used - room))
            status, _, err = launched.end()
        said = [line for line in err.splitlines() if line.startswith("danlu: ")]
        with capsys.disabled():
            print(f"\n{mode}, {room:,} bytes of room: {said or 'done'}")
        no_traceback(err)
        ballast.unlink()
        if status:
            assert len(said) == 1
            assert "See its traceback" not in said[0]
            launch(folder, mode, "resume", run)
        same(run, straight[mode][0])
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
