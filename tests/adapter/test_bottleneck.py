"""Bottleneck adapters against their definition."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tiny
from adapter.bases import BASES, base, logits, pack, stirred
from danlu.adapter.adapted import Adapters
from danlu.adapter.bottleneck import Bottleneck
from danlu.adapter.hub import read_adapter, save_adapter
from danlu.adapter.lora import LoRA
from danlu.contracts import SequenceModel
from danlu.errors import UnsupportedError
from danlu.generate.cache import Cache
from danlu.packed import NO_ADAPTER, ROOT, Packed
from danlu.parts.readout import Logits

HALVES = {"gpt2": ("attn", "mlp"), "bridged-gpt2": ("attn", "mlp")}


class Watched:
    """What goes through the halves of a model's blocks: what each gave by itself, and what came out."""

    def __init__(self, model: SequenceModel, where: str) -> None:
        self.model, self.found = model, dict[str, list[Tensor]]()
        names = HALVES.get(where, ("self_attn", "mlp"))
        self.halves = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in names]
        for name in self.halves:
            model.get_submodule(name).register_forward_hook(self._noting(name))

    def _noting(self, name: str) -> Any:
        def note(_: nn.Module, __: Any, output: Any) -> None:
            found = output[0] if isinstance(output, tuple) else output
            self.found.setdefault(name, []).append(found.detach().flatten(0, -2).clone())

        return note


@pytest.mark.parametrize("where", BASES)
@pytest.mark.parametrize("activation", ["gelu", "relu", "silu", "tanh"])
def test_it_is_the_definition(activation: Any, where: str, tmp_path: Path) -> None:
    model = base(where, tmp_path)
    before, attached = Watched(model, where), Bottleneck(size=3, activation=activation).attach(model)
    stirred(model)
    after = Watched(model, where)
    assert sorted(attached.halves) == sorted(before.halves)
    assert len(attached.halves) == 4
    logits(model, pack())
    function = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, "tanh": torch.tanh}[activation]
    for name in attached.halves:
        (h,), (out,) = before.found[name], after.found[name]
        narrow = model.get_submodule(f"{name}.bottleneck")
        w1, b1, w2, b2 = (p.detach() for p in narrow.parameters())
        torch.testing.assert_close(out, h + function(h @ w1.T + b1) @ w2.T + b2)


@pytest.mark.parametrize("where", BASES)
def test_at_its_start_it_adds_no_more_than_its_first_weights_can(where: str, tmp_path: Path) -> None:
    """Entries up to 2 std = 2e-3, biases 0, and |gelu(x)| <= |x|: |added| <= m (2e-3)^2 |h|_1."""
    model = base(where, tmp_path)
    whole, size = logits(model, pack()), 5
    before = Watched(model, where)
    attached = Bottleneck(size=size).attach(model)
    after = Watched(model, where)
    changed = logits(model, pack())
    for name in attached.halves:
        (h,), (out,) = before.found[name], after.found[name]
        added = out - h
        rounding = 2 * torch.finfo(h.dtype).eps * h.abs().max()
        assert bool((added.abs().amax(1) <= size * 2e-3**2 * h.abs().sum(1) + rounding).all())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert "bottleneck" in name
            assert parameter.dim() == 2 or not parameter.any()
            assert parameter.dim() == 1 or 1e-4 < float(parameter.detach().abs().max()) <= 2e-3
    torch.testing.assert_close(changed, whole, rtol=1e-3, atol=1e-3)
    assert not torch.equal(changed, whole)


def test_it_stands_where_it_is_asked_to(tmp_path: Path) -> None:
    found = {}
    for after in ("both", "attention", "feedforward"):
        attached = Bottleneck(size=2, after=after, layers=(-1,)).attach(base("llama", tmp_path))
        found[after] = attached.halves
    assert found["attention"] == ["layers.1.self_attn"]
    assert found["feedforward"] == ["layers.1.mlp"]
    assert found["both"] == ["layers.1.self_attn", "layers.1.mlp"]


def bridged(kind: str) -> SequenceModel:
    from architecture import bridged as models

    return models.bridged(kind)


@pytest.mark.parametrize(
    ("kind", "half", "width"),
    [
        ("opt", "fc2", 16),  # loose layers, and an embedding that is narrower than the stream
        ("gpt_oss", "mlp", 16),  # experts, whose result is a tuple
        ("gpt_neox", "mlp", 16),  # both halves at once
        ("deepseek_v3", "mlp", 16),
        ("cohere", "mlp", 16),
    ],
)
def test_blocks_of_all_sorts_have_two_halves(kind: str, half: str, width: int) -> None:
    model = bridged(kind)
    attached = Bottleneck(size=2).attach(model)
    assert len(attached.halves) == 4
    assert {name.rpartition(".")[2] for name in attached.halves[1::2]} == {half}
    assert model.get_submodule(f"{attached.halves[0]}.bottleneck.up").weight.shape == (width, 2)
    stirred(model)
    before = logits(model, pack())
    for name in attached.halves:  # each of them changes what comes out
        narrow = model.get_submodule(f"{name}.bottleneck")
        kept = narrow.up.weight.detach().clone()  # type: ignore[union-attr, operator]
        with torch.no_grad():
            narrow.up.weight.zero_()  # type: ignore[union-attr, operator]
            assert not torch.allclose(logits(model, pack()), before, atol=1e-6)
            narrow.up.weight.copy_(kept)  # type: ignore[union-attr, operator]


def test_a_block_of_other_parts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llama")
    for block in model.blocks:
        block.add_module("attention_too", nn.Linear(2, 2))
    with pytest.raises(UnsupportedError, match=r"'layers.0' is not attention and a feed-forward but self_attn, mlp"):
        Bottleneck().attach(model)


def test_chosen_for_some_segments_beside_another(tmp_path: Path) -> None:
    model = base("llama", tmp_path).double()
    model.compute_dtype = torch.float64
    every = {"wide": Bottleneck(size=4), "low": LoRA(rank=2), "narrow": Bottleneck(size=1, after="attention")}
    for name, adapter in every.items():
        adapter.attach(model, name=name)
        model.double()
        stirred(model)
    trees = [Packed.tree([[n, 2, 7, 1]], samples=n) for n in range(7)]
    which = [0, 2, 1, NO_ADAPTER, 0, 1, 2]
    packed = Packed.join([replace(t, adapter=torch.tensor([n])) for t, n in zip(trees, which, strict=True)])
    together, adapters = logits(model, packed), model.adapted
    assert isinstance(adapters, Adapters)
    for tree, number, (start, stop) in zip(trees, which, packed.trees, strict=True):
        with adapters.off() if number == NO_ADAPTER else adapters.use(list(every)[number]):
            torch.testing.assert_close(together[start:stop], logits(model, tree), rtol=1e-9, atol=1e-9)


def test_with_a_cache_it_is_what_it_is_all_at_once(tmp_path: Path) -> None:
    model, cache, found = base("qwen3", tmp_path), Cache(), []
    Bottleneck(size=3).attach(model)
    stirred(model)
    text = [3, 1, 4, 1, 5, 9]
    for start, stop in ((0, 3), (3, 4), (4, 6)):
        packed = Packed.tree([text[start:stop]], parents=[ROOT], positions=torch.arange(start, stop))
        with torch.no_grad():
            found.append(model(packed, [Logits(torch.arange(stop - start))], cache)[0])
    torch.testing.assert_close(torch.cat(found), logits(model, Packed.tree([text])), rtol=1e-4, atol=1e-4)


def test_its_file_says_all_of_it(tmp_path: Path) -> None:
    model = base("gpt2", tmp_path / "base")
    adapter = Bottleneck(size=2, after="feedforward", activation="relu", layers=(0,))
    save_adapter(adapter.attach(model), tmp_path / "adapter", base=str(tmp_path / "base"))
    saved = read_adapter(tmp_path / "adapter")
    assert saved.adapter == adapter
    named = "base_model.model.transformer.h.0.mlp.bottleneck"
    assert sorted(saved.tensors) == [f"{named}.{p}" for p in ("down.bias", "down.weight", "up.bias", "up.weight")]
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == "BOTTLENECK"
