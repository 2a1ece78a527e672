"""What some ranks began, another number of them goes on with: the same samples, and the same weights but for rounding."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import danlu
from ranks import run_ranks

from .runs import GPT2, QWEN3, assert_same_run, checkpoints, largest_difference, lines, recipe, rows, steps, weights

TOLERANCE = 1e-6
FLOOR = "optimizer.eps=1e-7"
MODEL = {**QWEN3, "tie_word_embeddings": False, "hidden_dropout": 0.1}


def train(made: dict[str, Any], *overrides: str) -> None:
    danlu.train(made, FLOOR, *overrides)


def resume(run: str, *overrides: str) -> None:
    danlu.resume(run, *overrides)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six updates by two ranks, sharded; the folder of the run."""
    folder = tmp_path_factory.mktemp("half")
    run_ranks(train, 2, recipe(folder, MODEL, steps=12, checkpoint_every=6), "run.parallel=zero3")
    run_of_six = folder / "run"
    assert checkpoints(run_of_six) == [6, 12]
    return run_of_six


@pytest.fixture(scope="module")
def straight(half: Path) -> Path:
    """The same run by one process."""
    made = recipe(half.parent, MODEL, steps=12, checkpoint_every=6, out="straight")
    return danlu.train(made, FLOOR).path


@pytest.mark.parametrize(("size", "mode"), [(1, "auto"), (3, "zero2"), (3, "ddp"), (2, "zero3")])
def test_any_number_of_ranks_goes_on(half: Path, straight: Path, tmp_path: Path, size: int, mode: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(half, run, symlinks=True)
    shutil.rmtree(run / "checkpoints" / "step-00000012")
    if size == 1:
        resume(str(run), f"run.parallel={mode}")
    else:
        run_ranks(resume, size, str(run), f"run.parallel={mode}")
    assert steps(run) == list(range(13))
    found, expected = weights(run), weights(straight)
    assert found.keys() == expected.keys()
    assert largest_difference(list(found.values()), list(expected.values())) < TOLERANCE
    for row, one in zip(rows(run), rows(straight), strict=True):
        assert [row.get(k) for k in ("samples", "tokens", "total_tokens", "lr")] == [
            one.get(k) for k in ("samples", "tokens", "total_tokens", "lr")
        ]
        assert row.get("loss", 0) == pytest.approx(one.get("loss", 0), rel=1e-5)
        assert row.get("held_out_loss", 0) == pytest.approx(one.get("held_out_loss", 0), rel=1e-5)
    told = [
        event for event in lines(run / "events.jsonl") if event["kind"] == "note" and "run.parallel" in event["message"]
    ]
    assert bool(told) == (mode != "zero3")


def test_the_same_number_of_ranks_goes_on_to_the_bit(half: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(half, run, symlinks=True)
    shutil.rmtree(run / "checkpoints" / "step-00000012")
    run_ranks(resume, 2, str(run))
    assert_same_run(run, half)


def test_what_one_process_began_several_go_on_with(tmp_path: Path) -> None:
    one = danlu.train(recipe(tmp_path, GPT2, steps=12, checkpoint_every=6), FLOOR).path
    run = tmp_path / "again"
    shutil.copytree(one, run, symlinks=True)
    shutil.rmtree(run / "checkpoints" / "step-00000012")
    run_ranks(resume, 2, str(run), "run.parallel=zero1")
    assert largest_difference(list(weights(run).values()), list(weights(one).values())) < TOLERANCE
