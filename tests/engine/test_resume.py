from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import danlu
from danlu.engine.record import Recorder
from danlu.errors import CheckpointError, DataError, RecipeError, RunError

from .runs import (
    GPT2,
    QWEN3,
    assert_same_run,
    assert_same_tensors,
    checkpoints,
    experiment,
    flip,
    lines,
    recipe,
    rows,
    state,
    step_folder,
    steps,
)


class Ended(BaseException):
    """The process is gone: nothing catches this."""


class Listener:
    """Does something when a step has been written down."""

    def __init__(self, step: int, act: Callable[[], Any]) -> None:
        self.step, self.act = step, act

    def metrics(self, row: Mapping[str, Any]) -> None:
        if row["step"] == self.step:
            self.act()

    def event(self, event: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


def end() -> None:
    raise Ended


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "gpt2, in samples": (GPT2, {}, {"steps": 12}),
    "qwen3 with dropout, in tokens": ({**QWEN3, "hidden_dropout": 0.1}, {"step_tokens": 70}, {"steps": 12}),
    "two epochs": (QWEN3, {"step_samples": 7}, {"epochs": 2}),
    "bf16": (GPT2, {}, {"steps": 12, "precision": "bf16"}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ends", [(4,), (3, 6, 7)], ids=str)
def test_a_run_that_ends_anywhere_and_goes_on_is_the_run_that_did_not(
    tmp_path: Path, case: str, ends: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended after metrics were written and before the checkpoint that follows them."""
    monkeypatch.setattr("danlu.engine.device._measured_peak", lambda *_: 1e12)
    model, data, run = CASES[case]

    def made(out: str) -> dict[str, Any]:
        one = recipe(tmp_path, model, out=out, eval_every=2, checkpoint_every=2, **run)
        one["data"] |= {**({"step_samples": None} if "step_tokens" in data else {}), **data}
        return one

    straight = danlu.train(made("straight")).path
    with pytest.raises(Ended):
        danlu.train(made("cut"), listeners=[Listener(ends[0], end)])
    cut = tmp_path / "cut"
    assert steps(cut)[-1] == ends[0]
    for step in ends[1:]:
        with pytest.raises(Ended):
            danlu.resume(cut, listeners=[Listener(step, end)])
    finished = danlu.resume(cut)
    assert finished.reason == "done"
    assert steps(cut) == list(range(len(steps(straight))))
    assert_same_run(cut, straight)
    last = steps(straight)[-1]
    assert_same_tensors(state(cut, last), state(straight, last))
    assert checkpoints(cut) == checkpoints(straight)
    resumes = [event["step"] for event in lines(cut / "events.jsonl") if event["kind"] == "resume"]
    assert resumes == [(step - 1) // 2 * 2 for step in ends]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return danlu.train(long_recipe(tmp_path_factory.mktemp("straight"))).path


def long_recipe(folder: Path) -> dict[str, Any]:
    return recipe(folder, GPT2, steps=80, eval_every=40, checkpoint_every=10, keep_checkpoints=2)


def started(run: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    """A command, when its run has written a checkpoint since and is on its way past it."""
    before = _last(run)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-m", "danlu", *map(str, arguments)], text=True, **pipes)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if before < _last(run) < _steps_written(run) - 1:
            return process
        time.sleep(0.001)
    raise AssertionError(process.communicate(timeout=10))


def _last(run: Path) -> int:
    return max(checkpoints(run), default=0)


def _steps_written(run: Path) -> int:
    return (run / "metrics.jsonl").read_bytes().count(b"\n") - 1


def test_killed_resumed_interrupted_and_resumed_it_is_the_run_that_was_left_alone(
    tmp_path: Path, straight: Path
) -> None:
    """Real processes, a real SIGKILL after a checkpoint and some steps, then a real SIGINT."""
    file, run = tmp_path / "recipe.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(long_recipe(tmp_path)), encoding="utf-8")
    process = started(run, "train", file)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    saved = _last(run)
    assert saved < _steps_written(run) < 80  # what came after the checkpoint is there, and has to be cut back

    process = started(run, "resume", run)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + signal.SIGINT, "")
    told = [json.loads(line) for line in out.splitlines()]
    assert (told[0]["kind"], told[0]["step"], told[0]["steps"]) == ("resume", saved, 80)
    assert (told[-1]["run"], told[-1]["reason"]) == (str(run), "SIGINT")
    assert saved < _last(run) == _steps_written(run) < 80
    assert (run / "report.html").exists()
    assert not (run / "final").exists()

    assert danlu.resume(run).reason == "done"
    assert steps(run) == list(range(81))
    assert_same_run(run, straight)
    assert_same_tensors(state(run, 80), state(straight, 80))


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_step_with_a_checkpoint(
    tmp_path: Path, which: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the command's own entry, with a real signal in the middle of step 5."""
    from danlu import cli, console

    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe(tmp_path, QWEN3, eval_every=10)), encoding="utf-8")
    before = signal.getsignal(which)
    metrics = console.Console.metrics

    def signalled(self: console.Console, row: Mapping[str, Any]) -> None:
        metrics(self, row)
        if row["step"] == 4:
            os.kill(os.getpid(), which)

    monkeypatch.setattr(console.Console, "metrics", signalled)
    monkeypatch.setattr(sys, "argv", ["danlu", "train", str(file)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 128 + which
    run = tmp_path / "run"
    assert checkpoints(run) == [5]
    assert steps(run) == [0, 1, 2, 3, 4, 5]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["reason"] == which.name
    assert signal.getsignal(which) is before
    monkeypatch.setattr(sys, "argv", ["danlu", "resume", str(run)])
    monkeypatch.setattr(console.Console, "metrics", metrics)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert_same_run(run, danlu.train(recipe(tmp_path, QWEN3, eval_every=10, out="straight")).path)


def test_a_signal_in_the_last_step_has_nothing_left_to_end(tmp_path: Path) -> None:
    act = lambda: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    run = danlu.train(recipe(tmp_path, QWEN3, eval_every=5, steps=6), listeners=[Listener(5, act)])
    assert run.reason == "done"
    assert run.metrics["step"] == 6


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    with pytest.raises(KeyboardInterrupt):
        danlu.train(recipe(tmp_path), listeners=[Listener(3, twice)])
    assert steps(tmp_path / "run") == [0, 1, 2, 3]


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    return danlu.train(recipe(tmp_path, QWEN3, eval_every=4, checkpoint_every=4)).path


def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(finished: Path) -> None:
    assert checkpoints(finished) == [8, 12]
    before = rows(finished)
    file = step_folder(finished, 12) / "optimizer.safetensors"
    flip(file, 1000)
    written = (finished / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError) as caught:
        danlu.resume(finished)
    assert str(caught.value) == (
        f"{file}: the file is altered: its checksum differs. Resume from the one before with --step 8."
    )
    assert (finished / "metrics.jsonl").read_bytes() == written
    assert checkpoints(finished) == [8, 12]
    danlu.resume(finished, step=8)
    assert rows(finished) == before


def test_a_half_written_line_is_forgotten(finished: Path) -> None:
    before = rows(finished)
    for name in ("metrics.jsonl", "events.jsonl"):
        with (finished / name).open("a") as file:
            file.write('{"step": 13, "loss": 1.')
    danlu.resume(finished, step=8)
    assert rows(finished) == before
    assert lines(finished / "events.jsonl")[-1]["kind"] == "end"


def test_a_finished_run_resumed_is_as_it_was(finished: Path) -> None:
    before = rows(finished), state(finished, 12)
    assert danlu.resume(finished).reason == "done"
    assert rows(finished) == before[0]
    assert_same_tensors(state(finished, 12), before[1])


def test_a_run_can_be_made_longer(finished: Path) -> None:
    danlu.resume(finished, "run.steps=16")
    assert steps(finished) == list(range(17))


def test_a_run_over_other_data_is_refused_with_nothing_lost(finished: Path) -> None:
    data = finished.parent / "documents.jsonl"
    data.write_text(data.read_text() + json.dumps({"text": "one more, about mercury"}) + "\n")
    kept = {file: file.read_bytes() for file in finished.rglob("*") if file.is_file()}
    with pytest.raises(DataError, match="the checkpoint's data is not this data"):
        danlu.resume(finished, step=8)
    assert kept == {file: file.read_bytes() for file in finished.rglob("*") if file.is_file()}


def test_a_checkpoint_of_another_model_is_refused(finished: Path) -> None:
    with pytest.raises(RecipeError, match=r"has begun: model.num_hidden_layers \(2 -> 1\)\. Start a new run"):
        danlu.resume(finished, "model.num_hidden_layers=1")
    parts = experiment(recipe(finished.parent, {**QWEN3, "num_hidden_layers": 1}))
    loop = parts.loop(finished, Recorder(finished), lambda: None)
    with pytest.raises(CheckpointError, match="another model"):
        loop.history.restore()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="this is no run"):
        danlu.resume(tmp_path)
    with pytest.raises(Ended):
        danlu.train(recipe(tmp_path, checkpoint_every=10), listeners=[Listener(2, end)])
    with pytest.raises(RunError) as caught:
        danlu.resume(tmp_path / "run")
    assert str(caught.value) == (
        f"{tmp_path / 'run'}: the run ended before its first checkpoint. "
        f"Begin it anew elsewhere: danlu train {tmp_path / 'run' / 'recipe.yaml'} run.out=DIR."
    )
