from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from danlu.errors import DanluError
from danlu.eval_terminal import evaluate_model
from danlu.evaluation import EvalRecipe
from danlu.evaluation.config import read_eval_recipe
from evaluation.chats import checkpoint, write

ROWS = [{"question": f"{i} + 1?", "answer": f"so\n#### {i + 1}"} for i in range(4)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("evaluated"))


@pytest.fixture
def data(tmp_path: Path) -> str:
    return "data.eval=" + write(tmp_path / "eval.jsonl", ROWS)


def test_elsewhere_than_on_a_terminal_a_task_is_a_line_of_json(
    model: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluate_model(model, [data, "tasks=loss,gsm8k", "run.max_new_tokens=4"], out=tmp_path / "out.json")
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["task"] for row in said] == ["loss", "gsm8k"]
    assert said[0]["loss"] == found["loss"].metrics["loss"]
    assert said[1]["samples"] == 4
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [len(task["records"]) for task in written] == [4, 4]


def test_on_a_terminal_it_is_a_table(
    model: Path, data: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    evaluate_model(model, [data, "tasks=[loss]", "data.limit=2"])
    said = capsys.readouterr().out
    assert "perplexity" in said
    assert "bits per byte" in said


@pytest.mark.parametrize(
    ("overrides", "options", "sentence"),
    [
        ([], {}, r"data\.eval: nothing to measure on is named. Give data\.eval=FILE"),
        (["data.evl=a"], {}, r"override data\.evl=a: data\.evl: there is no such key. Did you mean 'eval'"),
        (["data.eval=nowhere.jsonl"], {}, r"nowhere\.jsonl: there is no such file"),
        (["run.max_new_tokens=0"], {}, r"override run\.max_new_tokens=0: .*greater than or equal to 1"),
        (["run.precision=fp8"], {}, "override run.precision=fp8"),
        (["data.eval=a", "tasks=acc"], {}, "there is no task 'acc'"),
        (["data.eval=a"], {"out": "nowhere/out.json"}, "nowhere/out.json: its folder does not exist"),
    ],
)
def test_what_cannot_be_meant_is_a_sentence(
    model: Path, overrides: list[str], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(DanluError, match=sentence):
        evaluate_model(model, overrides, **options)


def test_overrides_are_read_as_yaml() -> None:
    read = read_eval_recipe(["data.eval=[a, b]", "data.fields={prompt: q}", "tasks=[loss, exact]", "run.as_chat=true"])
    assert (read.data.eval, read.data.fields) == (("a", "b"), {"prompt": "q"})
    assert (read.task_names, read.run.as_chat) == (("loss", "exact"), True)
    assert EvalRecipe().task_names == ("loss",)
