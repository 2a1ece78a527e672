"""Runs with an adapter: what is frozen stays to the bit, resumes are exact, ranks agree, others load what comes out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import danlu
from contracts.test_adapters import FIELDS
from danlu.build import assemble
from danlu.data import Tokenizer
from danlu.engine.state import optimizer_tensors
from danlu.errors import CheckpointError
from danlu.pretrained import load_pretrained
from danlu.reading import load_recipe
from danlu.registry import exported, lookup
from danlu.verifying import processes
from engine.runs import QWEN3, assert_same_run, checkpoints, largest_difference, recipe
from ranks import run_ranks
from test_verify import alone

ADAPTERS = [entry.name for entry in exported("adapter")]
BESIDE = [name for name in ADAPTERS if lookup("adapter", name).beside]


def base(folder: Path) -> Path:
    """A tiny checkpoint with a tokenizer."""
    return danlu.train(recipe(folder, QWEN3, out="base", steps=1)).path / "final"


def made(folder: Path, name: str, *, out: str = "run", **run: Any) -> dict[str, Any]:
    tuned = recipe(folder, {"path": str(folder / "base" / "final")}, out=out, **run)
    tuned["data"] = {key: value for key, value in tuned["data"].items() if key != "vocab_size"}
    return {**tuned, "adapter": {"name": name, **FIELDS[name][0]}}


def held(directory: Path) -> dict[str, Tensor]:
    return dict(load_pretrained(directory).named_parameters())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base."""
    found = tmp_path_factory.mktemp("tuned")
    base(found)
    return found


@pytest.mark.parametrize("name", ADAPTERS)
def test_what_is_frozen_stays_and_what_is_trained_moves(name: str, folder: Path) -> None:
    experiment = assemble(load_recipe(made(folder, name)))
    policy, updater = experiment.policy, experiment.updater()
    before = {key: p.detach().clone() for key, p in policy.named_parameters()}
    for step in range(3):
        updater.gradient(updater.groups(experiment.source.draw()), step)
        assert all((p.grad is None) == (not p.requires_grad) for p in policy.parameters())
        updater.clip()
        updater.move(1e-2)
    experiment.close()
    trained = {key for key, p in policy.named_parameters() if p.requires_grad}
    assert all(torch.equal(p, before[key]) for key, p in policy.named_parameters() if key not in trained)
    assert all(not torch.equal(p, before[key]) for key, p in policy.named_parameters() if key in trained)
    owners = {key.rpartition("/")[0] for key in optimizer_tensors(updater.optimizer, policy)}
    assert owners == trained


@pytest.mark.parametrize("name", ADAPTERS)
def test_what_comes_out_is_loaded_and_is_what_was_trained(name: str, folder: Path, tmp_path: Path) -> None:
    run = danlu.train(made(folder, name), f"run.out={tmp_path / 'run'}").path
    model = danlu.load(run / "final")
    assert len(model.generate(["the", "low"], max_new_tokens=3)) == 2
    assert (run / "final" / "adapter_config.json").exists() == (name in BESIDE)
    files = {path.stem for path in (run / "final").glob("*.safetensors")}
    assert files == ({"adapter_model"} if name in BESIDE else {"model"})
    assert Tokenizer.load(run / "final").vocab_size == 300


@pytest.mark.parametrize("name", ADAPTERS)
def test_checkpoints_hold_what_is_trained_and_resume_to_the_bit(name: str, folder: Path, tmp_path: Path) -> None:
    straight = danlu.train(made(folder, name, checkpoint_every=6), f"run.out={tmp_path / 'straight'}").path
    run = tmp_path / "run"
    shutil.copytree(straight, run, symlinks=True)
    shutil.rmtree(run / "checkpoints" / "step-00000012")
    shutil.rmtree(run / "final")
    danlu.resume(run)
    assert checkpoints(run) == [6, 12]
    assert_same_run(run, straight)
    saved = load_file(next((run / "checkpoints" / "step-00000012").glob("model*.safetensors")))
    policy = load_pretrained(folder / "base" / "final")
    lookup("adapter", name)(**FIELDS[name][0]).attach(policy)
    assert set(saved) == {key for key, p in policy.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("mode", ["ddp", "zero3"])
def test_two_ranks_equal_one(mode: str, folder: Path, tmp_path: Path) -> None:
    tuned = [made(folder, name, out=str(tmp_path / "one" / name)) for name in ADAPTERS]
    _train_each(tuned, tmp_path / "one")
    run_ranks(_train_each, 2, tuned, tmp_path / "two", f"run.parallel={mode}")
    for name in ADAPTERS:
        found, expected = (held(tmp_path / size / name / "final") for size in ("two", "one"))
        assert found.keys() == expected.keys()
        assert largest_difference(list(found.values()), list(expected.values())) < 1e-6, name


def _train_each(tuned: list[dict[str, Any]], out: Path, *overrides: str) -> None:
    for one in tuned:
        run = out / one["adapter"]["name"]
        danlu.train(one, "optimizer.eps=1e-7", f"run.out={run}", *overrides)


@pytest.mark.parametrize("name", ADAPTERS)
def test_recomputation_changes_nothing(name: str, folder: Path, tmp_path: Path) -> None:
    plain = danlu.train(made(folder, name), f"run.out={tmp_path / 'plain'}").path
    again = danlu.train(made(folder, name), f"run.out={tmp_path / 'again'}", "run.recompute=full").path
    found, expected = held(again / "final"), held(plain / "final")
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_base_that_has_changed_is_not_gone_on_with(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "base" / "final", tmp_path / "base" / "final")
    shutil.copy(folder / "documents.jsonl", tmp_path)
    run = danlu.train(made(tmp_path, "lora", checkpoint_every=6), "run.steps=6").path
    other = danlu.train(recipe(tmp_path, QWEN3, out="other", steps=2)).path / "final"
    shutil.copy(other / "model.safetensors", tmp_path / "base" / "final" / "model.safetensors")
    with pytest.raises(CheckpointError, match="base has other weights"):
        danlu.resume(run, "run.steps=8")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # of peft, to itself
@pytest.mark.parametrize("name", BESIDE)
def test_what_is_promised_of_recipes_is_verified_of_those_with_an_adapter(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "launch", alone)
    found = danlu.verify(made(folder, name))
    said = {each.name: (each.verdict, each.sentence) for each in found.checks}
    assert found.holds, [sentence for verdict, sentence in said.values() if verdict == "fails"]
    theirs = lookup("adapter", name).peft_type in ("LORA", "PREFIX_TUNING", "PROMPT_TUNING")
    assert said["exported_model"][0] == ("holds" if theirs else "does not apply"), said["exported_model"]
