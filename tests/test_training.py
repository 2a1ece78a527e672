from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import danlu
from danlu import training
from danlu.errors import DanluError, RunError
from danlu.reading import load_recipe
from engine.runs import GPT2, QWEN3, checkpoints, lines, recipe, rows, steps
from engine.test_checkpoint import no_file_larger_than


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_run_writes_down_what_it_is(tmp_path: Path) -> None:
    run = danlu.train(recipe(tmp_path, QWEN3, steps=2)).path
    resolved = load_recipe(run / "recipe.yaml")
    assert resolved.model.vocab_size == 300
    assert resolved.run.out == str(run)
    assert yaml.safe_load((run / "recipe.yaml").read_text())["optimizer"]["betas"] == [0.9, 0.95]
    versions = json.loads((run / "versions.json").read_text())
    assert versions["torch"] == torch.__version__
    assert {"danlu", "python", "platform", "device", "precision", "seed"} <= versions.keys()
    assert versions["device"]["peak_flops"] > 0
    start, data, model = lines(run / "events.jsonl")[:3]
    assert (start["kind"], start["steps"]) == ("start", 2)
    assert (data["kind"], data["vocab_size"], data["files"]) == ("data", 300, 1)
    assert sum(data["length_histogram"]["counts"]) == data["samples"]
    assert (model["kind"], model["architecture"]) == ("model", "qwen3")
    assert model["parameters"] == model["trainable"]


def test_without_out_a_run_is_called_after_its_recipe_and_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = recipe(tmp_path, steps=1)
    del made["run"]["out"]
    assert re.fullmatch(r"runs/run-\d{8}-\d{6}", str(danlu.train(made).path))
    file = tmp_path / "my recipe.yaml"
    file.write_text(yaml.safe_dump(made))
    assert re.fullmatch(r"runs/my-recipe-\d{8}-\d{6}", str(danlu.train(file).path))
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_an_empty_directory_will_do(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert danlu.train(recipe(tmp_path, steps=1)).reason == "done"


@pytest.mark.parametrize("existing", ["a run", "a file", "other things"])
def test_what_exists_is_not_touched(tmp_path: Path, existing: str) -> None:
    out, made = tmp_path / "run", recipe(tmp_path, steps=1)
    if existing == "a run":
        danlu.train(made)
    elif existing == "a file":
        out.write_text("precious")
    else:
        out.mkdir()
        (out / "precious").write_text("")
    before = tree(tmp_path)
    hint = "Go on with it by: danlu resume" if existing == "a run" else "There is no checkpoint in it to go on from"
    for start in (training.train, training.dry_run):
        with pytest.raises(RunError, match=f"the run directory exists. {hint}"):
            start(made)
    assert tree(tmp_path) == before


FAILING: dict[str, dict[str, Any]] = {
    "data": {"data": {"train": "nowhere.txt"}},
    "tokenizer": {"data": {"tokenizer": "nowhere"}},
    "vocabulary": {"model": {**GPT2, "vocab_size": 257}},
    "precision": {"run": {"precision": "fp16"}},
    "device": {"run": {"device": "furnace"}},
    "split": {"data": {"held_out": 1e-12}},
    "cache": {"data": {"cache": "/proc/nowhere"}},
    "logger": {"run": {"loggers": ["wandb"]}},
    "directory": {"run": {"out": "/proc/nowhere/run"}},
    "file above": {"run": {"out": "documents.jsonl/run"}},
}


@pytest.mark.parametrize("fault", FAILING)
def test_a_start_that_fails_leaves_nothing(tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = recipe(tmp_path)
    danlu.data.build_data(load_recipe(made).data, 0)  # the cache is filled
    for noun, fields in FAILING[fault].items():
        made[noun] = {**made[noun], **fields}
    before = tree(tmp_path)
    with pytest.raises(DanluError) as caught:
        danlu.train(made)
    assert "\n" not in str(caught.value)
    left = {name: content for name, content in tree(tmp_path).items() if not name.startswith("cache")}
    assert left == {name: content for name, content in before.items() if not name.startswith("cache")}
    assert not (tmp_path / "run").exists()


def test_a_directory_that_can_be_made_and_not_be_written_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(tmp_path)
    danlu.data.build_data(load_recipe(made).data, 0)
    with no_file_larger_than(100), pytest.raises(RunError, match="cannot be written: File too large"):
        danlu.train(made)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_what_would_run_and_writes_nothing(tmp_path: Path) -> None:
    made = recipe(tmp_path, QWEN3)
    danlu.data.build_data(load_recipe(made).data, 0)
    before = tree(tmp_path)
    plan = training.dry_run(made)
    assert tree(tmp_path) == before
    run = danlu.train(made, "run.steps=1").path
    facts = {event["kind"]: event for event in lines(run / "events.jsonl")}
    row = lines(run / "metrics.jsonl")[1]
    assert plan["parameters"] == facts["model"]["parameters"]
    assert plan["train_samples"] == facts["data"]["samples"]
    assert plan["held_out_samples"] == facts["data"]["held_out_samples"]
    assert plan["first_step"] == {"samples": row["samples"], "tokens": row["tokens"], "packs": row["packs"]}
    assert (plan["steps"], plan["vocabulary"], plan["architecture"]) == (12, 300, "qwen3")
    assert plan["seconds_at_least"] > 0
    assert plan["weights_gradients_optimizer_bytes"] == 16 * plan["parameters"]


class Full:
    """Fills the disk once a step, and a checkpoint of this run, are there: no file may be larger than so many bytes."""

    def __init__(self, step: int, size: int, run: Path | None = None) -> None:
        self.run, self.step, self.limit = run, step, no_file_larger_than(size)

    def metrics(self, row: dict[str, Any]) -> None:
        if row["step"] == self.step:
            while self.run is not None and not checkpoints(self.run):
                time.sleep(0.01)
            self.limit.__enter__()

    def event(self, event: dict[str, Any]) -> None:
        pass

    def close(self) -> None:
        self.limit.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("size", "what"),
    [(50_000, "the checkpoint of step 8 could not be written"), (2_000, "jsonl: the file"), (500, "jsonl: the file")],
)
def test_a_disk_that_fills_up_ends_the_run_with_the_checkpoint_before(tmp_path: Path, size: int, what: str) -> None:
    made = recipe(tmp_path, QWEN3, eval_every=4, checkpoint_every=4)
    with pytest.raises(RunError, match=what) as caught:
        danlu.train(made, listeners=[Full(6, size, tmp_path / "run")])
    assert "\n" not in str(caught.value)
    run = tmp_path / "run"
    assert checkpoints(run) == [4]
    assert danlu.resume(run).reason == "done"
    assert rows(run) == rows(danlu.train(made, f"run.out={tmp_path / 'straight'}").path)


def test_a_disk_that_is_full_at_the_end_ends_it_so_that_it_can_be_ended_again(tmp_path: Path) -> None:
    """The last checkpoint is there; the tokenizer, larger than it, is not."""
    made = recipe(tmp_path, {**QWEN3, "hidden_size": 2, "num_hidden_layers": 1}, steps=2, eval_every=1)
    with pytest.raises(RunError, match="the end of the run cannot be written: .* Make room, then: danlu resume"):
        danlu.train(made, listeners=[Full(1, 13_000)])
    run = tmp_path / "run"
    assert checkpoints(run) == [1, 2]
    assert danlu.resume(run).reason == "done"
    assert danlu.load(run / "final").generate("the", max_new_tokens=2)


def test_a_run_goes_in_any_thread(tmp_path: Path) -> None:
    """Only the main thread may handle signals."""
    ends: list[str] = []
    thread = threading.Thread(target=lambda: ends.append(danlu.train(recipe(tmp_path, steps=2)).reason))
    thread.start()
    thread.join(60)
    assert ends == ["done"]
    assert steps(tmp_path / "run") == [0, 1, 2]


def test_no_file_of_a_run_is_a_pickle_and_nothing_reads_one(tmp_path: Path) -> None:
    run = danlu.train(recipe(tmp_path, QWEN3, steps=2)).path
    files = [file for file in run.rglob("*") if file.is_file()]
    assert len(files) > 12
    for file in files:
        assert not file.read_bytes().startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")), (
            file
        )
    source = Path(danlu.__file__).parent
    for file in source.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(
            r"\btorch\.(load|save)\b|^\s*(import|from) (pickle|dill|joblib|shelve)\b|\bpickle\.", text, re.M
        ), file
