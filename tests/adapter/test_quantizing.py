"""A quantised base under an adapter: against the same model holding the matrices that the codes stand for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file

import danlu
from adapter.bases import BASES, base, checkpoint, logits, pack, stirred
from adapter.test_runs import made as recipe_of
from contracts.test_adapters import SAVED, fitting, gradients
from contracts.test_adapters import made as adapter_of
from danlu.adapter.hub import read_adapter
from danlu.adapter.lora import LoRA
from danlu.adapter.quantizing import quantize
from danlu.adapter.targets import is_transposed, linears
from danlu.contracts import SequenceModel
from danlu.engine.work import passes
from danlu.errors import RecipeError, UnsupportedError
from danlu.fingerprint import model_fingerprint
from danlu.parts.quantized import Quantization, Quantized, num_bytes, num_weights
from danlu.pretrained import load_pretrained
from danlu.reading import load_recipe
from danlu.verifying import processes
from engine.runs import QWEN3, assert_same_run, largest_difference, recipe
from ranks import run_ranks
from test_verify import alone

pytest.importorskip("bitsandbytes")
KINDS = get_args(Quantization)


@torch.no_grad()
def dequantized(name: str, folder: Path, kind: Quantization) -> SequenceModel:
    """The base with full matrices, those that the codes stand for."""
    model, kept = base(name, folder), base(name, folder)
    quantize(kept, kind)
    for layer in linears(model):
        held, made = model.get_submodule(layer), kept.get_submodule(layer)
        assert isinstance(made, Quantized)
        assert isinstance(held.weight, torch.Tensor)
        held.weight.copy_(made.weight.t() if is_transposed(held) else made.weight)
    return model


@pytest.mark.parametrize("where", BASES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fields", [{}, {"dora": True}], ids=["lora", "dora"])
def test_gradients_are_those_over_the_matrices_that_the_codes_stand_for(
    fields: dict[str, Any], kind: Quantization, where: str, tmp_path: Path
) -> None:
    kept, full = base(where, tmp_path), dequantized(where, tmp_path, kind)
    quantize(kept, kind)
    found = []
    for model in (kept, full):
        LoRA(rank=2, **fields).attach(model)
        stirred(model)
        found.append((logits(model, pack()), gradients(model, pack())))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)
    trained = {name for name, p in kept.named_parameters() if p.requires_grad}
    assert trained
    for name in trained:
        torch.testing.assert_close(found[0][1][name], found[1][1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "number"), SAVED)
def test_any_adapter_stands_on_it(name: str, number: int, tmp_path: Path) -> None:
    kept, full = base("llama", tmp_path), dequantized("llama", tmp_path, "nf4")
    quantize(kept, "nf4")
    found = []
    for model in (kept, full):
        fitting(adapter_of(name, number), full).attach(model)
        stirred(model)
        found.append({key: g for key, g in gradients(model, pack()).items() if g is not None})
    assert found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "worst"), [("int8", 0.03), ("nf4", 0.5), ("fp4", 0.7)])
def test_it_computes_about_what_it_did(kind: Quantization, worst: float, tmp_path: Path) -> None:
    model = base("llama", tmp_path)
    before = logits(model, pack())
    quantize(model, kind)
    error = (logits(model, pack()) - before).norm() / before.norm()
    assert 0 < error < worst


@pytest.mark.parametrize("where", BASES)
def test_the_blocks_matrices_take_so_many_bytes_and_nothing_else_changes(where: str, tmp_path: Path) -> None:
    model = base(where, tmp_path)
    weights, before = num_weights(model), num_bytes(model)
    matrices = {name: model.get_submodule(name).weight for name in linears(model)}
    others = {name: p for name, p in model.named_parameters() if not any(p is m for m in matrices.values())}
    flops = model.flops(pack(), 3)
    assert quantize(model, "nf4") == len(matrices)
    sizes = [int(m.numel()) for m in matrices.values() if isinstance(m, torch.Tensor)]
    codes = sum(n // 2 + 4 * -(-n // 64) for n in sizes)
    assert num_bytes(model) == before - 4 * sum(sizes) + codes
    assert num_weights(model) == weights
    assert model.flops(pack(), 3) == flops
    held = dict(model.named_parameters())
    assert held.keys() == others.keys()
    assert all(torch.equal(held[name], p) for name, p in others.items())


def test_products_are_counted_as_those_of_a_frozen_base(tmp_path: Path) -> None:
    counted = []
    for kind in (None, "int8"):
        model = base("qwen3", tmp_path)
        if kind is not None:
            quantize(model, "int8")
        LoRA(rank=1).attach(model)
        counted.append(passes(model))
    assert counted[0] == counted[1]


def test_what_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = base("llama", tmp_path / "base")
    quantize(model, "int8")
    with pytest.raises(RecipeError, match=r"adapter.also_train: 'layers.0.self_attn.q_proj' is quantised"):
        LoRA(rank=2, also_train=("layers.0.self_attn.q_proj",)).attach(model)
    attached = LoRA(rank=2).attach(model)
    with pytest.raises(UnsupportedError, match="the base is quantised"):
        attached.merge()
    monkeypatch.setattr(type(model), "blocks", ())
    with pytest.raises(UnsupportedError, match="nothing to quantise"):
        quantize(model, "int8")


def test_recipes_say_when_it_cannot_be(tmp_path: Path) -> None:
    folder = checkpoint("llama", tmp_path)
    given: dict[str, Any] = {**recipe(tmp_path, QWEN3), "model": {"path": str(folder), "quantize": "nf4"}}
    with pytest.raises(RecipeError, match="this adapter trains them"):
        load_recipe({**given, "adapter": {"name": "freeze", "layers": [0]}})
    with pytest.raises(RecipeError, match="run.parallel is zero2, which cannot share out a quantised base: use ddp"):
        load_recipe({**given, "adapter": "lora"}, ["run.parallel=zero2"])
    with pytest.raises(RecipeError, match=r"model.quantize: .*int9"):
        load_recipe({**given, "adapter": "lora"}, ["model.quantize=int9"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base."""
    found = tmp_path_factory.mktemp("quantised")
    danlu.train(recipe(found, QWEN3, out="base", steps=1))
    return found


def quantised(folder: Path, kind: str | None = "nf4", **run: Any) -> dict[str, Any]:
    given = recipe_of(folder, "lora", **run)
    return {**given, "model": {**given["model"], "quantize": kind}}


def test_a_run_over_it_comes_close_and_names_its_base(folder: Path, tmp_path: Path) -> None:
    losses, marks = [], []
    for kind in (None, "int8", "nf4"):
        run = danlu.train(quantised(folder, kind), f"run.out={tmp_path / str(kind)}")
        losses.append(run.metrics["held_out_loss"])
        marks.append(read_adapter(run.path / "final").fingerprint)
        assert len(danlu.load(run.path / "final").generate(["the"], max_new_tokens=2)) == 1
    whole = model_fingerprint(load_pretrained(folder / "base" / "final"))
    assert marks == [whole] * 3
    assert losses[0] != losses[1] == pytest.approx(losses[0], abs=2e-3)
    assert losses[1] != losses[2] == pytest.approx(losses[0], abs=5e-2)


def test_a_run_over_it_is_resumed_to_the_bit_and_its_checkpoints_hold_what_is_trained(
    folder: Path, tmp_path: Path
) -> None:
    straight = danlu.train(quantised(folder, checkpoint_every=6), f"run.out={tmp_path / 'straight'}").path
    run = tmp_path / "run"
    shutil.copytree(straight, run, symlinks=True)
    shutil.rmtree(run / "checkpoints" / "step-00000012")
    shutil.rmtree(run / "final")
    danlu.resume(run)
    assert_same_run(run, straight)
    saved = load_file(next((run / "checkpoints" / "step-00000012").glob("model*.safetensors")))
    assert all(name.rpartition(".")[2] in ("A", "B") for name in saved)
    with pytest.raises(RecipeError, match="model.quantize"):
        danlu.resume(run, "model.quantize=int8")


def test_training_goes_on_over_it_from_an_adapter(folder: Path, tmp_path: Path) -> None:
    first = danlu.train(quantised(folder), f"run.out={tmp_path / 'first'}").path
    given = {key: value for key, value in quantised(folder).items() if key != "adapter"}
    given["model"] = {"path": str(first / "final"), "quantize": "nf4"}
    second = danlu.train(given, f"run.out={tmp_path / 'second'}").path
    a, b = read_adapter(first / "final"), read_adapter(second / "final")
    assert (a.base, a.fingerprint) == (b.base, b.fingerprint)
    assert any(not torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
    with pytest.raises(RecipeError, match="a quantised base cannot be trained itself"):
        danlu.train({**given, "model": {**given["model"], "path": str(folder / "base" / "final")}})


def test_two_ranks_equal_one(folder: Path, tmp_path: Path) -> None:
    tuned = quantised(folder, out="one")
    one = danlu.train(tuned, "optimizer.eps=1e-7").path
    run_ranks(_train, 2, tuned, f"run.out={tmp_path / 'two'}")
    found, expected = read_adapter(tmp_path / "two" / "final").tensors, read_adapter(one / "final").tensors
    assert largest_difference(list(found.values()), list(expected.values())) < 1e-6


def _train(tuned: dict[str, Any], *overrides: str) -> None:
    danlu.train(tuned, "optimizer.eps=1e-7", *overrides)


def test_promises_are_verified_over_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "launch", alone)
    found = danlu.verify(quantised(folder))
    said = {each.name: (each.verdict, each.sentence) for each in found.checks}
    assert found.holds, said
    assert said["exported_model"] == (
        "does not apply",
        "The base is trained over as nf4, and exported as its files have it.",
    )
