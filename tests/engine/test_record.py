from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import danlu
from danlu.console import show_result
from danlu.engine.record import Recorder, TensorBoard, WeightsAndBiases, json_line, rows_of
from danlu.errors import RunError, UnsupportedError
from danlu.run_folder import last_metrics
from danlu.training import Run

from .runs import lines, recipe


class Heard:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, Any]] = []
        self.kinds: list[str] = []
        self.closed = 0

    def metrics(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)

    def event(self, event: Mapping[str, Any]) -> None:
        self.kinds.append(event["kind"])

    def close(self) -> None:
        self.closed += 1


def test_rows_and_events_are_a_json_object_a_line_and_listeners_hear_them(tmp_path: Path) -> None:
    heard = Heard()
    recorder = Recorder(tmp_path, [heard])
    recorder.metrics({"step": 1, "loss": 0.5, "perplexity": math.inf, "mfu": math.nan})
    recorder.metrics({"step": 2, "loss": 0.1 + 0.2})
    recorder.event("sample", step=2, text="火\n候")
    recorder.close()
    assert lines(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": 0.5, "perplexity": None, "mfu": None},
        {"step": 2, "loss": 0.1 + 0.2},
    ]
    (event,) = lines(tmp_path / "events.jsonl")
    assert (event["kind"], event["step"], event["text"]) == ("sample", 2, "火\n候")
    assert event["time"] > 1.7e9
    assert ([row["step"] for row in heard.rows], heard.kinds, heard.closed) == ([1, 2], ["sample"], 1)
    assert json.loads(json_line({"a": -math.inf}), parse_constant=pytest.fail) == {"a": None}


def lines_of_whole(file: Path) -> list[dict[str, Any]]:
    return list(rows_of(file))


def test_cutting_back_keeps_what_is_not_later(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.event("start", steps=9)
    for step in range(6):
        recorder.metrics({"step": step, "loss": 1 / (step + 1), "word": "é"})
        recorder.event("checkpoint", step=step)
    for name in ("metrics.jsonl", "events.jsonl"):
        with (tmp_path / name).open("ab") as file:
            file.write(b'{"step": 2, "lo')
    whole = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    told = len((tmp_path / "events.jsonl").read_bytes())
    recorder.cut_back(3)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(whole[:4])
    assert len((tmp_path / "events.jsonl").read_bytes()) == told
    then = lines_of_whole(tmp_path / "events.jsonl")[4]["time"]
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"time": then, "kind": "rollback", "step": 5}) + "\n")
    recorder.cut_back(3, then)
    assert lines(tmp_path / "events.jsonl").pop()["kind"] == "rollback"  # of a later step, and told before
    recorder.cut_back(3, then - 1e6)
    assert [e.get("step") for e in lines(tmp_path / "events.jsonl")] == [None, 0, 1, 2, 3]
    recorder.metrics({"step": 4})
    assert [row["step"] for row in lines(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3, 4]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_row_ends_at_a_newline_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "a\u2028b\u2029c\x85d\x1ce\r\nf"
    recorder = Recorder(tmp_path)
    recorder.event("sample", step=1, prompt="", text=text)
    recorder.metrics({"step": 1, "word": text})
    recorder.cut_back(1)
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write('{"text": "é'.encode()[:-1])  # a crash cuts where it likes
    assert [row["text"] for row in rows_of(tmp_path / "events.jsonl")] == [text]
    assert last_metrics(tmp_path) == {"step": 1, "word": text}
    show_result(Run(tmp_path, "done", {}))
    assert json.loads(capsys.readouterr().out)["sample"] == text


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunError) as caught:
        Recorder(tmp_path).metrics({"step": 1})
    assert str(caught.value) == (
        f"{tmp_path / 'metrics.jsonl'}: the file could not be written: No space left on device. "
        f"Make room, then: danlu resume {tmp_path}."
    )


def test_tensorboard_gets_every_scalar(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = recipe(tmp_path, steps=3, eval_every=2, prompts=["the"], prompt_tokens=2, loggers=["tensorboard"])
    run = danlu.train(made).path
    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    written = lines(run / "metrics.jsonl")
    names = {name for row in written for name in row} - {"step"}
    assert set(found.Tags()["scalars"]) == names
    for name in names:
        scalars = [(scalar.step, scalar.value) for scalar in found.Scalars(name)]
        assert scalars == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in written if name in row]
    assert found.Tags()["tensors"] == ["the/text_summary"]


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_logger_that_is_not_installed_is_one_sentence_and_no_run(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = danlu.engine.record.importlib.util.find_spec  # type: ignore[attr-defined]
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted, *a: None if wanted == name else find(wanted, *a))
    with pytest.raises(UnsupportedError) as caught:
        danlu.train(recipe(tmp_path, loggers=[name]))
    expected = f"run.loggers: {name} is not installed. Install it with: pip install 'danlu[{name}]'."
    assert str(caught.value) == expected
    assert not (tmp_path / "run").exists()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UnsupportedError, match=f"{name} is not installed"):
        TensorBoard(tmp_path) if name == "tensorboard" else WeightsAndBiases(tmp_path, {})


def test_weights_and_biases_gets_rows_and_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the calls that its documentation names; the package itself is not installed here."""
    told: list[Any] = []

    class Wandb:
        @staticmethod
        def init(**options: Any) -> Any:
            told.append(options)
            return Wandb()

        def log(self, row: dict[str, Any], step: int) -> None:
            told.append((step, row["loss"]))

        def finish(self) -> None:
            told.append("finished")

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    listener = WeightsAndBiases(tmp_path / "run-1", {"run": {"steps": 3}})
    listener.metrics({"step": 2, "loss": 0.5})
    listener.event({"kind": "start"})
    listener.close()
    assert told[0] == {
        "project": "danlu",
        "name": "run-1",
        "dir": str(tmp_path / "run-1"),
        "config": {"run": {"steps": 3}},
    }
    assert told[1:] == [(2, 0.5), "finished"]
