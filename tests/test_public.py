from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import danlu
from danlu.batch import Batch
from danlu.parts.readout import Logits
from engine.runs import GPT2, QWEN3, document, recipe, steps


@pytest.mark.parametrize("name", danlu.__all__)
def test_what_is_public_is_there_and_documented(name: str) -> None:
    found = getattr(danlu, name)
    assert found.__doc__
    assert callable(found)
    if name in danlu._HOMES:
        assert found is getattr(importlib.import_module(danlu._HOMES[name]), name)


def test_homes_and_the_public_names_agree() -> None:
    assert danlu.__all__ == sorted(danlu.__all__)
    assert set(danlu.__all__) == {*danlu._HOMES, "load"}
    with pytest.raises(AttributeError, match="module 'danlu' has no attribute 'furnace'"):
        _ = danlu.furnace
    assert not hasattr(danlu, "__path_of_nothing__")


def test_importing_it_is_light() -> None:
    script = "import sys, danlu; print(*sorted(sys.modules))"
    loaded = set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )
    assert "danlu" in loaded
    assert not {"torch", "transformers", "plotly", "numpy", "pydantic", "yaml", "rich", "typer"} & loaded


class Heard:
    """Keeps the steps it is told of."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def metrics(self, row: Mapping[str, Any]) -> None:
        self.steps.append(row["step"])

    def event(self, event: Mapping[str, Any]) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture(scope="module", params=[GPT2, QWEN3], ids=lambda model: model["name"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> danlu.Run:
    heard = Heard()
    made = recipe(tmp_path_factory.mktemp("public"), request.param)
    run = danlu.train(made, "run.steps=4", "optimizer.lr=5e-3", listeners=[heard])
    assert heard.steps == steps(run.path) == [0, 1, 2, 3, 4]
    return run


def test_a_dictionary_is_trained_to_a_run(run: danlu.Run) -> None:
    assert (run.path.name, run.reason) == ("run", "done")
    assert run.metrics["step"] == 4
    assert run.metrics["held_out_loss"] < 5.7


def test_a_recipe_object_is_trained_too(tmp_path: Path) -> None:
    loaded = danlu.load_recipe(recipe(tmp_path), ["run.steps=1"])
    assert isinstance(loaded, danlu.Recipe)
    assert steps(danlu.train(loaded).path) == [0, 1]


def test_what_was_trained_is_loaded_writes_and_scores(run: danlu.Run) -> None:
    model = danlu.load(run.path / "final")
    assert isinstance(model, danlu.LanguageModel)
    text = model.generate("the furnace", max_new_tokens=6, seed=1)
    assert text == model.generate(["the furnace"], max_new_tokens=6, seed=1)
    assert "".join(model.stream("the furnace", max_new_tokens=6, seed=1)) == text[0]
    known, scrambled = model.log_prob([document(7), document(7)[::-1]])
    assert scrambled < known < 0


def test_transformers_loads_what_was_trained(run: danlu.Run) -> None:
    transformers = pytest.importorskip("transformers")
    final = run.path / "final"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(final).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(final)
    ours = danlu.load(final)
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == ours.tokenizer.eos_id
    for text in (document(3), document(12), "火候 naïve\n\n  42", "plain"):
        ids = ours.tokenizer.encode(text)
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids.tolist()
        assert tokenizer.decode(ids) == ours.tokenizer.decode(ids) == text
        tokens = torch.from_numpy(ids[:60])
        group = _group(tokens)
        with torch.no_grad():
            (logits,) = ours.model(group.packed, [Logits(torch.arange(len(tokens)))])
            expected = theirs(tokens[None]).logits[0]
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert {p.dtype for p in theirs.parameters()} == {torch.float32}


def _group(tokens: torch.Tensor) -> Batch:
    from danlu.packed import Packed, Targets

    return Batch(Packed.tree([tokens]), Targets.none())
