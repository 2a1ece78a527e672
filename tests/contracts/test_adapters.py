"""The contract of every exported adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from adapter.bases import BASES, base, checkpoint, logits, pack, stirred
from danlu.adapter.adapted import Adapters
from danlu.adapter.contract import Adapter
from danlu.adapter.hub import read_adapter, save_adapter
from danlu.architecture.checkpoint import load_model, save_model
from danlu.contracts import SequenceModel
from danlu.errors import DanluError, RecipeError
from danlu.packed import Packed, Targets
from danlu.parts.readout import Likelihood
from danlu.registry import exported, lookup
from strategies import keyed

FIELDS: dict[str, list[dict[str, Any]]] = {
    "lora": [
        {"rank": 2},
        {"rank": 2, "dora": True, "dropout": 0.2},
        {"rank": 3, "rslora": True, "layers": [-1], "also_train": ["*norm*", "*ln_*"]},
    ],
    "freeze": [{"layers": [-1]}, {"targets": ["*norm*", "*ln_*"]}],
    "prefix": [
        {"length": 3, "hidden": 5},
        {"length": 2, "reparameterize": False, "beyond_windows": True, "also_train": ["*norm*", "*ln_*"]},
    ],
    "prompt": [{"length": 3}, {"length": 2, "start": "normal", "also_train": ["*norm*", "*ln_*"]}],
    "bottleneck": [{"size": 3}, {"size": 2, "after": "attention", "activation": "tanh", "layers": [-1]}],
}
"""Some settings of each adapter; a new adapter adds its line here."""
ADAPTERS = [entry.name for entry in exported("adapter")]
CASES = [(name, number) for name in ADAPTERS for number in range(len(FIELDS.get(name, [{}])))]
SAVED = [case for case in CASES if lookup("adapter", case[0]).beside]


def made(name: str, number: int = 0) -> Adapter:
    assert name in FIELDS, f"'{name}' is exported; give it settings in tests/contracts/test_adapters.py"
    fields = dict(FIELDS[name][number])
    adapter: Adapter = lookup("adapter", name)(**fields)
    return adapter


def fitting(adapter: Adapter, model: SequenceModel) -> Adapter:
    """The same with only those patterns that this architecture has modules for."""
    names = [*model.hub_names(), *(name for name, _ in model.named_modules())]

    def known(patterns: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(p for p in patterns if any(_has(n, p) for n in names))

    changes = {field: known(getattr(adapter, field)) for field in ("also_train",)}
    if isinstance(getattr(adapter, "targets", None), tuple) and not adapter.beside:
        changes["targets"] = known(adapter.targets)  # type: ignore[attr-defined]
    return adapter.model_copy(update=changes)


def _has(name: str, pattern: str) -> bool:
    from fnmatch import fnmatchcase

    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def trained(model: SequenceModel) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def gradients(model: SequenceModel, packed: Packed) -> dict[str, torch.Tensor | None]:
    rows = torch.arange(len(packed))
    targets = Targets(rows, packed.tokens.roll(1), torch.linspace(0.5, 1.5, len(packed)))
    (sums,) = model(packed, [Likelihood(targets)])
    model.zero_grad(set_to_none=True)
    sums.loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_field_is_documented_beside_it(name: str) -> None:
    assert all(f.description for f in lookup("adapter", name).model_fields.values())


@pytest.mark.parametrize("where", BASES)
@pytest.mark.parametrize(("name", "number"), CASES)
def test_what_is_frozen_has_no_gradient_and_what_is_trained_has_one(
    name: str, number: int, where: str, tmp_path: Path
) -> None:
    model = base(where, tmp_path)
    whole = {name: p.clone() for name, p in model.named_parameters()}
    adapter = fitting(made(name, number), model)
    adapter.attach(model)
    stirred(model)
    found = gradients(model, pack())
    names = trained(model)
    assert 0 < len(names) < len(found)
    assert all((gradient is not None) == (key in names) for key, gradient in found.items())
    assert all(bool(found[key].count_nonzero()) for key in names)  # type: ignore[union-attr]
    held = dict(model.named_parameters())
    assert all(torch.equal(held[key], value) for key, value in whole.items() if key not in names)


@pytest.mark.parametrize("where", BASES)
@pytest.mark.parametrize(("name", "number"), CASES)
def test_packed_equals_one_by_one(name: str, number: int, where: str, tmp_path: Path) -> None:
    model = base(where, tmp_path).double()
    model.compute_dtype = torch.float64
    fitting(made(name, number), model).attach(model)
    model.double()
    stirred(model)
    packed = keyed(pack())
    together = gradients(model, packed)
    alone: dict[str, Any] = {}
    weights = torch.linspace(0.5, 1.5, len(packed))
    tokens = packed.tokens.roll(1)
    for start, stop in packed.trees:
        tree = next(t for t, (a, _) in zip(packed.split(), packed.trees, strict=True) if a == start)
        (sums,) = model(
            tree, [Likelihood(Targets(torch.arange(stop - start), tokens[start:stop], weights[start:stop]))]
        )
        model.zero_grad(set_to_none=True)
        sums.loss.backward()
        for key, parameter in model.named_parameters():
            if parameter.grad is not None:
                alone[key] = alone.get(key, 0) + parameter.grad
    for key, gradient in together.items():
        if gradient is not None:
            close = 1e-5 if where == "bridged-gemma2" else 1e-9  # whose norm computes in float32 whatever it is given
            torch.testing.assert_close(gradient, alone[key], rtol=close, atol=close / 10)


@pytest.mark.parametrize("where", BASES)
@pytest.mark.parametrize(("name", "number"), SAVED)
def test_saved_and_loaded_it_computes_the_same(name: str, number: int, where: str, tmp_path: Path) -> None:
    model = base(where, tmp_path / "base")
    attached = fitting(made(name, number), model).attach(model)
    stirred(model)
    model.eval()
    save_adapter(attached, tmp_path / "adapter", base=str(tmp_path / "base"), fingerprint=12)
    again = load_model(tmp_path / "base", bridge=where.startswith("bridged-")).eval()
    saved = read_adapter(tmp_path / "adapter")
    saved.attach(again, fingerprint=12)
    assert torch.equal(logits(again, pack()), logits(model, pack()))
    with pytest.raises(DanluError, match="other weights"):
        saved.attach(load_model(tmp_path / "base", bridge=where.startswith("bridged-")), fingerprint=13)


@pytest.mark.parametrize(("name", "number"), SAVED)
def test_switched_off_the_model_is_what_it_was(name: str, number: int, tmp_path: Path) -> None:
    if FIELDS[name][number].get("also_train"):
        pytest.skip("what is trained whole cannot be switched off")
    model = base("llama", tmp_path)
    before = logits(model, pack())
    made(name, number).attach(model)
    stirred(model)
    adapted = model.adapted
    assert isinstance(adapted, Adapters)
    assert not torch.equal(logits(model, pack()), before)
    with adapted.off():
        assert torch.equal(logits(model, pack()), before)
    assert not torch.equal(logits(model, pack()), before)


@pytest.mark.parametrize(("name", "number"), SAVED)
def test_an_adapter_of_other_shapes_is_refused_in_a_sentence(name: str, number: int, tmp_path: Path) -> None:
    model = base("llama", tmp_path / "base")
    attached = fitting(made(name, number), model).attach(model)
    save_adapter(attached, tmp_path / "adapter", base=str(tmp_path / "base"))
    other = tiny.model("gpt2", dtype=torch.float32, n_embd=12)
    with pytest.raises(DanluError):
        read_adapter(tmp_path / "adapter").attach(other)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "NONE_SUCH"}))
    with pytest.raises(DanluError, match="no adapter is of type"):
        read_adapter(tmp_path / "adapter")


def test_patterns_that_match_nothing_suggest_the_nearest(tmp_path: Path) -> None:
    model = base("llama", tmp_path)
    with pytest.raises(
        RecipeError, match=r"adapter.targets: 'q_porj' matches no module of the model. Did you mean 'q_proj'"
    ):
        lookup("adapter", "lora")(targets="q_porj").attach(model)
    with pytest.raises(RecipeError, match="there is no layer 5"):
        lookup("adapter", "lora")(layers=[5]).attach(model)


def test_a_checkpoint_is_read_where_its_adapter_says(tmp_path: Path) -> None:
    from danlu.pretrained import load_pretrained

    model = base("llama", tmp_path / "base")
    attached = lookup("adapter", "lora")(rank=2).attach(model)
    stirred(model)
    save_adapter(attached, tmp_path / "adapter", base="../base")
    assert torch.equal(logits(load_pretrained(tmp_path / "adapter").eval(), pack()), logits(model, pack()))
    save_adapter(attached, tmp_path / "adapter", base=str(tmp_path / "gone"))
    with pytest.raises(DanluError, match="base is not at"):
        load_pretrained(tmp_path / "adapter")
    assert checkpoint("llama", tmp_path / "again").is_dir()


@pytest.mark.parametrize(("name", "number"), SAVED)
def test_an_adapter_of_another_base_is_refused_where_it_is_read(name: str, number: int, tmp_path: Path) -> None:
    from danlu.fingerprint import model_fingerprint
    from danlu.pretrained import load_pretrained

    model = base("llama", tmp_path / "base")
    mark = model_fingerprint(model)
    attached = fitting(made(name, number), model).attach(model)
    save_adapter(attached, tmp_path / "adapter", base=str(tmp_path / "base"), fingerprint=mark)
    for bridge in (False, True):
        assert load_pretrained(tmp_path / "adapter", bridge=bridge).adapted is not None
    other = base("llama", tmp_path / "other")
    with torch.no_grad():
        next(other.parameters())[0] += 1
    save_model(other, tmp_path / "base")
    with pytest.raises(DanluError, match="trained on a base with other weights than these. Give the base it belongs"):
        load_pretrained(tmp_path / "adapter")
