from __future__ import annotations

import errno
import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import danlu
from danlu.engine import staging
from danlu.engine.checkpoint import Checkpoints
from danlu.engine.record import Recorder
from danlu.engine.update import Updater
from danlu.errors import DataError, RunError

from .runs import (
    CONTEXT,
    GPT2,
    QWEN3,
    assert_same_tensors,
    checkpoints,
    experiment,
    lines,
    pointed,
    recipe,
    rows,
    source,
    state,
    steps,
    weights,
)


def test_a_run_writes_down_every_step(tmp_path: Path) -> None:
    made = recipe(tmp_path, QWEN3, eval_every=5, prompts=["the furnace"], prompt_tokens=3)
    run = danlu.train(made)
    assert (run.path, run.reason) == (tmp_path / "run", "done")
    written = lines(run.path / "metrics.jsonl")
    assert [row["step"] for row in written] == list(range(13))
    held_out = {row["step"]: row["held_out_loss"] for row in written if "held_out_loss" in row}
    assert list(held_out) == [0, 5, 10, 12]
    assert held_out[12] < held_out[0]
    assert run.metrics == written[-1]
    wanted = {"loss", "tokens", "tokens_per_second", "mfu", "grad_norm", "lr", "memory_bytes", "packing_efficiency"}
    for row in written[1:]:
        assert wanted <= row.keys()
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"])
        assert row["packing_efficiency"] == row["tokens"] / (row["packs"] * 64)
        assert 0 < row["mfu"] < 1
        assert row["memory_bytes"] > 1 << 20
    assert written[-1]["total_tokens"] == sum(row["tokens"] for row in written[1:])
    events = lines(run.path / "events.jsonl")
    assert [e["step"] for e in events if e["kind"] == "sample"] == [0, 5, 10, 12]
    assert [e["step"] for e in events if e["kind"] == "checkpoint"] == [5, 10, 12]
    assert events[-1]["kind"] == "end"
    assert {"recipe.yaml", "versions.json", "report.html", "final", "checkpoints"} <= {
        f.name for f in run.path.iterdir()
    }


def test_the_model_that_comes_out_is_that_of_the_last_checkpoint(tmp_path: Path) -> None:
    run = danlu.train(recipe(tmp_path, QWEN3))
    last = {k.removeprefix("model/"): v for k, v in state(run.path, 12).items() if k.startswith("model/")}
    assert_same_tensors({k.removeprefix("model."): v for k, v in weights(run.path).items()}, last)


@pytest.mark.parametrize("step", [{"step_samples": 5}, {"step_tokens": 100}])
def test_epochs_are_every_sample_so_many_times(tmp_path: Path, step: dict[str, int]) -> None:
    made = recipe(tmp_path, epochs=2)
    made["data"] |= {"step_samples": None, **step}
    parts = experiment(made)
    corpus = parts.data.train.whole()
    assert sorted(_all_samples(parts)) == sorted([*range(len(corpus))] * 2)
    written = lines(danlu.train(made).path / "metrics.jsonl")[1:]
    assert sum(row["samples"] for row in written) == 2 * len(corpus)
    assert written[-1]["total_tokens"] == 2 * int(corpus.lengths.sum())
    consumed = 0
    for row in written:
        consumed += row["samples"]
        factor = parts.recipe.optimizer.schedule.factor(consumed / (2 * len(corpus)))
        assert row["lr"] == pytest.approx(1e-3 * factor)
    assert written[-1]["lr"] == pytest.approx(1e-3 * 0.1)
    if "step_samples" in step:
        assert {row["samples"] for row in written[:-1]} == {5}
        assert written[-1]["samples"] == 2 * len(corpus) % 5 != 0
        assert len(written) == parts.steps
    else:
        assert all(row["tokens"] <= 100 for row in written)
        assert len({row["samples"] for row in written}) > 2


def _all_samples(parts: Any) -> list[int]:
    drawn, found = source(parts), []
    while samples := drawn.draw():
        found += [sample.id for sample in samples]
    return found


def test_the_rate_of_each_step_is_the_schedules_at_the_steps_end(tmp_path: Path) -> None:
    made = recipe(tmp_path, steps=8, eval_every=8)
    made["optimizer"]["schedule"] = {"name": "wsd", "warmup": 0.5, "cooldown": 0.25}
    written = lines(danlu.train(made).path / "metrics.jsonl")[1:]
    assert [row["lr"] for row in written] == pytest.approx([1e-3 * f for f in (0.25, 0.5, 0.75, 1, 1, 1, 0.5, 0)])


@pytest.mark.parametrize(
    ("lr", "steps", "eval_every", "checkpoint_every", "in_the_middle"),
    [(0.03, 9, 1, 1, True), (0.05, 9, 2, 3, True), (0.1, 4, 1, 3, False)],
)
def test_the_newest_and_the_best_of_the_checkpoints_are_kept(
    tmp_path: Path, lr: float, steps: int, eval_every: int, checkpoint_every: int, in_the_middle: bool
) -> None:
    """Rates that are too high, so that the best does not come last; of the last case, it is no checkpoint."""
    made = recipe(tmp_path, steps=steps, eval_every=eval_every, checkpoint_every=checkpoint_every, keep_checkpoints=1)
    made["optimizer"] |= {"lr": lr, "schedule": "constant"}
    run = danlu.train(made).path
    written = [*range(checkpoint_every, steps, checkpoint_every), steps]
    losses = {row["step"]: row["held_out_loss"] for row in lines(run / "metrics.jsonl") if "held_out_loss" in row}
    best = min((step for step in written if step in losses), key=losses.__getitem__)
    assert (best < steps) == in_the_middle
    assert in_the_middle or min(losses, key=losses.__getitem__) not in written
    assert checkpoints(run) == sorted({best, steps})
    assert (pointed(run, "best"), pointed(run, "last")) == (best, steps)


def test_the_best_is_found_anew_when_a_run_is_taken_up_from_an_earlier_step(tmp_path: Path) -> None:
    run = danlu.train(recipe(tmp_path, eval_every=2, keep_checkpoints=3)).path
    assert (checkpoints(run), pointed(run, "best")) == ([8, 10, 12], 12)
    danlu.resume(run, "optimizer.lr=0.5", "optimizer.schedule=constant", step=8)
    losses = {row["step"]: row["held_out_loss"] for row in lines(run / "metrics.jsonl") if "held_out_loss" in row}
    assert losses[10] > losses[8]
    assert losses[12] > losses[8]
    assert steps(run) == list(range(13))
    assert (checkpoints(run), pointed(run, "best"), pointed(run, "last")) == ([8, 10, 12], 8, 12)


def test_a_best_that_gave_way_to_one_that_is_undone_is_best_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = iter([9.0, 1.0, 3.0, 3.0, 3.0, 0.5, 2.0])  # at steps 0, 2 .. 12: the checkpoint of 2 goes when 10 is better
    monkeypatch.setattr(Updater, "measure", lambda *_: {"loss": next(told)})
    run = danlu.train(recipe(tmp_path, eval_every=2, keep_checkpoints=3)).path
    assert (checkpoints(run), pointed(run, "best")) == ([8, 10, 12], 10)
    told = iter([2.5, 2.0])
    danlu.resume(run, step=8)
    assert (checkpoints(run), pointed(run, "best")) == ([8, 10, 12], 12)


def test_a_best_that_could_not_be_written_leaves_the_best_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = itertools.chain([9.0, 3.0, 1.0], itertools.repeat(5.0))  # at steps 0, 2, 4 ..: that of 4 is not written
    monkeypatch.setattr(Updater, "measure", lambda *_: {"loss": next(told)})
    plain = staging.save_tensors

    def save(tensors: Any, path: Path, *bounds: Any) -> None:
        if path.parent.name.endswith("step-00000004"):
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(tensors, path, *bounds)

    monkeypatch.setattr(staging, "save_tensors", save)
    with pytest.raises(RunError, match="the checkpoint of step 4 could not be written: No space left on device"):
        danlu.train(recipe(tmp_path, eval_every=2))
    run = tmp_path / "run"
    assert 4 not in checkpoints(run)
    assert (checkpoints(run)[-1] > 4, pointed(run, "best")) == (True, 2)
    saved = Checkpoints(run / "checkpoints").load().state["progress"]
    assert (saved["best_step"], saved["best_loss"]) == (2, 3.0)
    danlu.resume(run)
    assert pointed(run, "best") == 2


def test_without_held_out_data_there_is_no_best(tmp_path: Path) -> None:
    made = recipe(tmp_path, steps=3)
    made["data"]["held_out"] = None
    run = danlu.train(made)
    assert steps(run.path) == [1, 2, 3]
    assert not any(name.startswith("held_out") for row in rows(run.path) for name in row)
    assert not (run.path / "checkpoints" / "best").is_symlink()
    assert run.metrics["step"] == 3


def test_what_is_not_finite_stops_the_run_with_the_samples_named(tmp_path: Path) -> None:
    made = recipe(tmp_path, QWEN3, eval_every=1, keep_checkpoints=1)
    made["optimizer"] = {"name": "adamw", "lr": 1e30, "schedule": {"name": "constant", "warmup": 0}}
    with pytest.raises(RunError) as caught:
        danlu.train(made)
    words = str(caught.value)
    assert "is not finite because of" in words
    assert "documents.jsonl:" in words
    assert "no weight was changed" in words
    assert "\n" not in words
    run = tmp_path / "run"
    stopped = checkpoints(run)[-1] + 1
    assert f"step {stopped} " in words
    assert lines(run / "events.jsonl")[-1] == {**lines(run / "events.jsonl")[-1], "kind": "warning", "message": words}
    assert not (run / "final").exists()
    assert all(torch.isfinite(tensor).all() for tensor in state(run, stopped - 1).values())


def test_another_seed_is_another_run_and_the_same_is_the_same(tmp_path: Path) -> None:
    ends = [
        danlu.train(recipe(tmp_path, GPT2, out=f"run{i}", steps=3, seed=seed)).path for i, seed in enumerate((0, 0, 1))
    ]
    assert rows(ends[0]) == rows(ends[1])
    assert rows(ends[0]) != rows(ends[2])
    assert_same_tensors(weights(ends[0]), weights(ends[1]))


def test_the_size_of_a_pack_changes_no_run(tmp_path: Path) -> None:
    ends = [danlu.train(recipe(tmp_path, GPT2, out=f"{n}", pack_tokens=n, steps=6)).path for n in (CONTEXT, 47, 4096)]
    for run in ends[1:]:
        for found, expected in zip(rows(run), rows(ends[0]), strict=True):
            for name in ("loss", "grad_norm", "held_out_loss", "held_out_bits_per_byte"):
                assert found.get(name, 0) == pytest.approx(expected.get(name, 0), rel=1e-5)
    assert len({row["packs"] for run in ends for row in rows(run)[1:]}) > 2


def test_bits_per_byte_are_of_the_bytes_of_the_documents(tmp_path: Path) -> None:
    made = recipe(tmp_path, steps=1)
    parts = experiment(made)
    run = danlu.train(made)
    corpus = parts.data.held_out
    assert corpus is not None
    row = lines(run.path / "metrics.jsonl")[0]
    nll = row["held_out_loss"] * int(corpus.lengths.sum())
    assert row["held_out_bits_per_byte"] == pytest.approx(nll / math.log(2) / corpus.statistics.num_bytes, rel=1e-9)


class Faulty:
    """A source whose next draw, after some, cannot be read."""

    def __init__(self, inner: Any, draws: int) -> None:
        self.inner, self.draws = inner, draws

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def draw(self) -> Any:
        if not self.draws:
            self.inner.draw()  # as a source that has consumed some samples when it comes to the bad one
            raise DataError("the line is not JSON", where="some.jsonl:7")
        self.draws -= 1
        return self.inner.draw()


def test_a_fault_in_what_comes_later_leaves_a_checkpoint_of_the_last_update(tmp_path: Path) -> None:
    parts = experiment(recipe(tmp_path, checkpoint_every=12))
    before = source(parts)
    for _ in range(3):
        before.draw()
    (tmp_path / "run").mkdir()
    loop = replace(parts, source=Faulty(parts.source, 3)).loop(
        tmp_path / "run", Recorder(tmp_path / "run", []), lambda: None
    )
    with pytest.raises(DataError, match=r"some\.jsonl:7: the line is not JSON"):
        loop.run()
    assert checkpoints(tmp_path / "run") == [3]
    assert loop.history.checkpoints.load(None).state["source"] == before.state_dict()


def test_data_that_end_early_end_the_run_as_it_should_end(tmp_path: Path) -> None:
    made = recipe(tmp_path, steps=500)
    made["data"]["train"] = [{"files": made["data"]["train"], "epochs": 1}]
    run = danlu.train(made)
    last = steps(run.path)[-1]
    assert 0 < last < 500
    assert checkpoints(run.path)[-1] == last
    assert (run.path / "final").exists()
    assert run.metrics["step"] == last
    told = [event["message"] for event in lines(run.path / "events.jsonl") if event["kind"] == "warning"]
    assert told == [f"the data ended after {last} updates, before the run was to"]
