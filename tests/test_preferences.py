"""Preference data as a person meets them: the command line and Python, with a method that learns from answers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from commands import Say
from danlu import registry
from danlu.batch import Answers, Batch
from danlu.build import assemble
from danlu.checking import check
from danlu.contracts import Outcome, SequenceMethod
from danlu.errors import DataError, RecipeError
from danlu.packed import Packed, Targets
from danlu.parts.readout import Likelihood
from danlu.reading import load_recipe
from danlu.training import train
from data.conftest import sentence
from engine.runs import lines
from test_sft import checkpoint, write


class Chosen(SequenceMethod):
    """Maximum likelihood of the first answer, the prompt being one segment, and each answer a child of it."""

    learns_from: ClassVar[Literal["sequence", "answers"]] = "answers"

    def group(self, sample: Answers) -> Batch:
        """A prompt with its answers, but for each one's last token, from which nothing is predicted."""
        parts = [torch.from_numpy(sample.prompt), *(torch.from_numpy(a[:-1]) for a in sample.answers if len(a) > 1)]
        packed = Packed.tree(parts, parents=(-1, *[0] * (len(parts) - 1)), samples=sample.id)
        first = torch.from_numpy(sample.answers[0])
        rows = torch.arange(len(first)) + len(sample.prompt) - 1
        weights = torch.ones(len(first)) if sample.weights is None else torch.from_numpy(sample.weights[0])
        return Batch(packed, Targets(rows, first, weights), num_bytes=sample.num_bytes, origin=(sample.origin,))

    def counts(self, batch: Batch) -> dict[str, float]:
        """Targets."""
        return {"nll": float(batch.targets.weights.sum())}

    def loss(self, models: Mapping[str, nn.Module], batch: Batch) -> Outcome:
        """Their negative log-likelihood."""
        (sums,) = models["policy"](batch.packed, [Likelihood(batch.targets)])
        return Outcome({"nll": sums.loss}, {})

    def summarize(self, averages: Mapping[str, float]) -> dict[str, float]:
        """As it is."""
        return dict(averages)


@pytest.fixture(autouse=True)
def _method(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known in these tests alone."""
    registry.exported("method")
    monkeypatch.setitem(registry._exports, ("method", "chosen"), registry.Export("method", "chosen", Chosen, "a test"))


def pairs(folder: Path, count: int = 16) -> Path:
    rows = [
        {"prompt": [{"role": "user", "content": sentence(i)}], "chosen": sentence(i + 1), "rejected": sentence(i + 2)}
        for i in range(count)
    ]
    return write(folder / "pairs.jsonl", *rows)


def arguments(folder: Path, model: Path, file: Path, *more: str) -> list[str]:
    run = ("run.device=cpu", "run.steps=4", f"run.out={folder / 'run'}", "data.step_samples=4", "data.context=512")
    return [
        "sft",
        "method=chosen",
        f"model={model}",
        f"data.train={file}",
        f"data.cache={folder / 'cache'}",
        *run,
        *more,
    ]


def test_from_pairs_to_a_checkpoint(say: Say, tmp_path: Path) -> None:
    model, file = checkpoint(tmp_path / "model"), pairs(tmp_path)
    checked = say("check", *arguments(tmp_path, model, file), "--html", tmp_path / "check.html")
    assert (checked.status, checked.rows[0]["train"]["shapes"]) == (0, {"preference": 16})
    assert {found["name"] for found in checked.rows[0]["findings"]} >= {"length_bias"}
    assert '<span class="part">rejected</span>' in (tmp_path / "check.html").read_text()
    more = ("run.prompts=[what burns]", "run.checkpoint_every=2", "data.held_out=0.2", "run.prompt_tokens=3")
    answer = say("train", *arguments(tmp_path, model, file, *more))
    assert (answer.status, answer.err) == (0, "")
    (told,) = [row for row in answer.rows if row.get("kind") == "data"]
    assert told["shapes"].keys() == {"preference"}
    assert 0 < told["learned"] < told["targets"]
    run = tmp_path / "run"
    assert all(math.isfinite(row["loss"]) for row in lines(run / "metrics.jsonl") if row["step"])
    before = load_file(run / "final" / "model.safetensors")
    again = say("resume", run, "--step", "2")
    assert again.status == 0
    after = load_file(run / "final" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_prompts_are_put_as_the_data_are(tmp_path: Path) -> None:
    """A user's message where pairs are rendered by the template, and text where they are texts of no turns."""
    model = checkpoint(tmp_path / "model")
    texts = write(
        tmp_path / "texts.jsonl", *({"chosen": f"{sentence(i)} a", "rejected": f"{sentence(i)} b"} for i in range(8))
    )
    for file, starts in ((pairs(tmp_path), "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"), (texts, "hi")):
        recipe, *settings = arguments(tmp_path, model, file, "run.prompts=[hi]")
        experiment = assemble(load_recipe(recipe, settings))
        ((prompt,), _) = experiment._prompts()
        assert experiment.data.tokenizer.decode(prompt) == starts
        experiment.close()


def test_the_two_kinds_of_method_refuse_each_others_rows(say: Say, tmp_path: Path) -> None:
    model, file = checkpoint(tmp_path / "model"), pairs(tmp_path)
    chats = write(tmp_path / "texts.jsonl", {"text": "the furnace burns low"})
    answer = say("train", *arguments(tmp_path, model, file, "method=sft"))
    assert answer.status == 1
    assert (
        "pairs.jsonl:1: the row is a pair of a chosen and a rejected answer, and the method learns from" in answer.err
    )
    answer = say("train", *arguments(tmp_path, model, chats))
    assert answer.status == 1
    assert "texts.jsonl:1: the row is of shape 'text', and the method learns from answers. Set method=sft" in answer.err
    assert not (tmp_path / "run").exists()
    assert say("check", *arguments(tmp_path, model, file, "method=sft")).status == 1


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "Q", "chosen": "A"}, "the row has no rejected answer"),
        ({"prompt": "Q", "chosen": "A", "rejected": ""}, "the rejected answer is empty"),
        ({"prompt": "Q", "completion": "A"}, "the row is of shape 'prompt/completion'"),
    ],
)
def test_a_bad_row_is_a_sentence_and_a_run_goes_on_without_it(
    say: Say, tmp_path: Path, row: dict[str, Any], says: str
) -> None:
    model = checkpoint(tmp_path / "model")
    file = write(tmp_path / "bad.jsonl", *lines(pairs(tmp_path)), row)
    answer = say("train", *arguments(tmp_path, model, file))
    assert answer.status == 1
    assert f"bad.jsonl:17: {says}" in answer.err
    diagnosis = check(*arguments(tmp_path, model, file))
    (found,) = [finding for finding in diagnosis.findings if finding.name == "unreadable"]
    assert found.examples[0].where.endswith("bad.jsonl:17")
    recipe, *settings = arguments(tmp_path, model, file, f"data.quarantine={tmp_path / 'bad'}", "run.steps=1")
    assert train(recipe, *settings).reason == "done"
    (line,) = lines(tmp_path / "bad" / "bad.jsonl.jsonl")
    assert line["row"] == json.dumps(row)


def test_a_pair_that_is_too_long_is_told_before_the_run(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model")
    long = {"prompt": "Q", "chosen": "the furnace " * 400, "rejected": "B"}
    recipe, *settings = arguments(tmp_path, model, write(tmp_path / "long.jsonl", long), "data.too_long=split")
    with pytest.raises(DataError, match=r"long.jsonl:1: the prompt with its longest answer has [\d,]+ tokens"):
        train(recipe, *settings)
    assert train(recipe, *settings, "data.too_long=truncate_right", "run.steps=1").reason == "done"


def test_a_pack_has_room_for_both_answers(tmp_path: Path) -> None:
    recipe, *settings = arguments(tmp_path, tmp_path, tmp_path, "run.pack_tokens=1023")
    with pytest.raises(RecipeError, match=r"run.pack_tokens \(1023\) is less than twice data.context \(512\)"):
        load_recipe(recipe, settings)
    assert load_recipe(recipe, [*settings, "run.pack_tokens=1024"]).run.pack_tokens == 1024
