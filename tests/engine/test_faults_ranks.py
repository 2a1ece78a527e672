"""Faults of one of several ranks: all of them end alike, in one sentence, and the run goes on to the bit."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

import danlu
from danlu.engine.checkpoint import Checkpoints
from launching import Launch
from ranks import run_ranks

from .faults import masked
from .rank_faults import EPS, LONG, MODES, SAMPLES, STEPS, go_through
from .runs import (
    QWEN3,
    assert_same_run,
    assert_same_tensors,
    checkpoints,
    documents,
    largest_difference,
    lines,
    recipe,
    step_folder,
    steps,
    weights,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def made(folder: Path) -> dict[str, Any]:
    one = recipe(folder, QWEN3, steps=STEPS, eval_every=4, checkpoint_every=2, keep_checkpoints=4, pack_tokens=200)
    one["data"] |= {"context": 200, "step_samples": SAMPLES}
    whole = documents(folder, 60).read_text(encoding="utf-8").splitlines(keepends=True)
    for name, first in (("skip", 5 * SAMPLES), ("rollback", 4 * SAMPLES)):
        (folder / f"{name}.jsonl").write_text("".join(whole[:first] + whole[6 * SAMPLES :]), encoding="utf-8")
    return one


@pytest.fixture(scope="module")
def launch(folder: Path, made: dict[str, Any]) -> tuple[int, int, int, str]:
    """A run by `torchrun`, a rank of which is killed; it goes on by itself, until `torchrun` is told to end.

    The steps of the checkpoints at the kill and at the end; the status; what was said besides.
    """
    file, run = folder / "recipe.yaml", folder / "launched"
    file.write_text(yaml.safe_dump(made), encoding="utf-8")
    with Launch("train", file, f"run.out={run}", "run.parallel=zero3", LONG, restarts=1) as launched:
        launched.wait(lambda: max(checkpoints(run), default=0) >= 10)
        assert launched.send(signal.SIGKILL, 1)
        killed = max(checkpoints(run))
        launched.wait(lambda: '"resume"' in (run / "events.jsonl").read_text() and max(checkpoints(run)) >= killed + 10)
        launched.send(signal.SIGTERM)
        status, _, err = launched.end()
    return killed, max(checkpoints(run)), status, err


@pytest.fixture(scope="module")
def found(folder: Path, made: dict[str, Any], launch: Any) -> dict[str, Any]:
    """What the first rank found, which is what the second did."""
    first, second = run_ranks(go_through, 2, made, folder)
    assert first.keys() == second.keys()
    for name in first:
        assert first[name] == second[name], name
    return first


def same(folder: Path, name: str, other: str, last: int = STEPS) -> None:
    """To the bit, and no step is there twice; which rank writes which part of what all have is not told."""
    assert_same_run(folder / name, folder / other)
    assert [step for step in steps(folder / name) if step] == list(range(1, last + 1))
    one, two = (Checkpoints(folder / run / "checkpoints").load(last) for run in (name, other))
    for file in ("model", "optimizer"):
        assert_same_tensors(dict(one.tensors[file]), dict(two.tensors[file]))


def test_a_rank_that_is_killed_is_replaced_and_a_signal_to_all_ends_the_run(
    folder: Path, found: dict[str, Any], launch: tuple[int, int, int, str]
) -> None:
    killed, ended, status, err = launch
    assert found["launched"] == [["done"], ["done"]]
    assert status
    assert killed < ended < 60
    events = lines(folder / "launched" / "events.jsonl")
    assert [event["step"] for event in events if event["kind"] == "resume"][-1] == ended
    assert len([event for event in events if event["kind"] in ("start", "resume")]) == 3
    assert [event["reason"] for event in events if event["kind"] == "end"] == ["SIGTERM", "done"]
    assert str(Path(danlu.__file__).parent) not in err, "a traceback"
    said = [line for line in err.splitlines() if line.startswith("danlu: ")]
    assert all(line.startswith("danlu: rank 0 lost rank 1, which gives no sign of life: ") for line in said)
    same(folder, "launched", "long", 60)


def test_a_signal_to_one_rank_ends_all_after_the_update(folder: Path, found: dict[str, Any]) -> None:
    assert found["signal"] == [["SIGTERM"], [2, 4, 5], ["done"]]
    same(folder, "signal", "zero3")


def test_a_rank_whose_time_is_up_ends_all_after_the_update(folder: Path, found: dict[str, Any]) -> None:
    ended, there, resumed = found["time"]
    assert (ended, resumed) == (["max_time"], ["done"])
    assert 2 <= there[-1] < STEPS
    same(folder, "time", "ddp")


def test_what_one_rank_cannot_write_is_told_by_all_and_nothing_is_lost(folder: Path, found: dict[str, Any]) -> None:
    (kind, words), there, resumed = found["checkpoint"]
    assert kind == "RunError"
    assert words == (
        f"{step_folder(folder / 'checkpoint', 6)}: the checkpoint of step 6 could not be written: File too large "
        "(rank 1). The checkpoint of step 4 is whole."
    )
    assert (there[:2], resumed) == ([2, 4], ["done"])
    same(folder, "checkpoint", "zero3")
    (kind, words), there, resumed = found["metrics"]
    assert kind == "RunError"
    assert words == (
        f"{folder / 'metrics' / 'metrics.jsonl'}: the file could not be written: File too large. "
        f"Make room, then: danlu resume {folder / 'metrics'}."
    )
    assert (there[:2], resumed) == ([2, 4], ["done"])
    same(folder, "metrics", "zero3")


def test_a_part_that_is_damaged_is_named_and_the_step_before_goes_on(folder: Path, found: dict[str, Any]) -> None:
    file = step_folder(folder / "zero3", STEPS) / "model-00002-of-00002.safetensors"
    (kind, words), there, resumed = found["flipped"]
    assert kind == "CheckpointError"
    assert words == f"{file}: the file is altered: its checksum differs. Resume from the one before with --step 6."
    assert (there, resumed) == ([2, 4, 6, 8], ["done"])


def test_what_one_rank_cannot_read_is_told_by_all_and_what_was_learned_is_kept(
    folder: Path, found: dict[str, Any]
) -> None:
    (kind, words), there, resumed = found["data"]
    assert (kind, there, resumed) == ("DataError", [2, 4, 5], ["done"])
    assert words.startswith("some.jsonl:7: the line is not JSON. ")
    same(folder, "data", "zero3")


def test_a_process_that_stalls_for_one_rank_ends_all(folder: Path, found: dict[str, Any]) -> None:
    (kind, words), there, left, resumed = found["stalled"]
    assert kind == "RunError"
    assert "part" in words.split(":")[0]
    assert words.endswith(
        ":1: the documents from here on were not encoded within 1 s: a process has stalled. "
        "Go on by: danlu resume RUN; if it happens again, with data.workers=1."
    )
    assert there[-1] >= 2
    assert (left, resumed) == ([], ["done"])
    same(folder, "stalled", "not stalled")


def test_a_rank_that_has_nothing_to_learn_from_is_no_fault_and_all_of_them_are(
    folder: Path, made: dict[str, Any], found: dict[str, Any]
) -> None:
    one, (kind, words), there, shares = found["masked"]
    assert one == ["done"]
    assert kind == "RunError"
    assert words.startswith("step 3 has nothing to learn from: its count of 'nll' is 0 on samples ")
    assert there == [2]
    with masked(shares[1], 0.0):
        alone = danlu.train(made, f"run.out={folder / 'masked alone'}", EPS).path
    ours, theirs = weights(folder / "masked"), weights(alone)
    assert largest_difference(list(ours.values()), [theirs[name] for name in ours]) < 1e-6


@pytest.mark.parametrize("layout", ["ddp", "zero3", "ring"])
def test_one_sample_that_is_not_finite(folder: Path, found: dict[str, Any], layout: str) -> None:
    bad, (kind, words), there = found[f"{layout} not finite"]
    sentence = (
        f"the loss or gradient of step 6 is not finite because of {bad}; the weights of the targets are not finite"
    )
    assert kind == "RunError"
    assert words.startswith(f"{sentence}; no weight was changed. ")
    assert there == [2, 4, 5]
    for policy in ("skip", "rollback"):
        run = folder / f"{layout} {policy}"
        same(folder, run.name, f"{run.name} oracle")
        told = [event["message"] for event in lines(run / "events.jsonl") if event["kind"] == policy]
        assert told == [sentence]
    same(folder, f"{layout} stop", f"{layout} skip")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", ["output", "backward"])
def test_a_ring_finds_the_sample_and_the_layer(found: dict[str, Any], mode: str, way: str) -> None:
    bad, count, seen, layer, sentence = found[f"{mode} {way}"]
    assert (seen, layer) == (way, "layers.1.mlp")
    assert f"is not finite because of {bad}; " in sentence
    assert count == SAMPLES
