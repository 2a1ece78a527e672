"""LoRA against the definition and against `peft`, both ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from adapter.bases import BASES, base, logits, pack, stirred
from danlu.adapter.adapted import Adapters
from danlu.adapter.hub import read_adapter, save_adapter
from danlu.adapter.lora import LoRA
from danlu.architecture.checkpoint import load_model
from danlu.errors import RecipeError, UnsupportedError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # of peft, to itself
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"rank": 2, "targets": ("all-linear",)},
    "rank-stabilised": {"rank": 4, "alpha": 3.0, "rslora": True},
    "dora": {"rank": 2, "dora": True, "alpha": 5.0},
}


def theirs(directory: Path) -> Any:
    peft = pytest.importorskip("peft")
    return peft.AutoPeftModelForCausalLM.from_pretrained(directory).eval()


def their_logits(model: Any) -> torch.Tensor:
    """Of each path of the pack, one by one, put where its rows are."""
    packed = pack()
    out = torch.zeros(len(packed), logits_width(model))
    for path, rows in packed.unroll():
        with torch.no_grad():
            out[rows] = model(input_ids=path.tokens[None]).logits[0]
    return out


def logits_width(model: Any) -> int:
    return int(model.config.vocab_size)


@pytest.mark.parametrize("where", BASES)
@pytest.mark.parametrize("kind", KINDS)
def test_peft_computes_the_same_with_our_adapter(kind: str, where: str, tmp_path: Path) -> None:
    model = base(where, tmp_path / "base")
    attached = LoRA(**KINDS[kind]).attach(model)
    stirred(model)
    save_adapter(attached, tmp_path / "adapter", base=str(tmp_path / "base"))
    torch.testing.assert_close(their_logits(theirs(tmp_path / "adapter")), logits(model, pack()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("where", ["gpt2", "llama", "bridged-gemma2"])
@pytest.mark.parametrize("kind", [{}, {"use_dora": True}, {"use_rslora": True, "lora_alpha": 3}])
def test_we_compute_the_same_with_an_adapter_of_peft(kind: dict[str, Any], where: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base(where, tmp_path / "base")
    inner = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    patterns = {"rank_pattern": {"layers.0.self_attn.q_proj": 4}, "alpha_pattern": {"down_proj": 7}}
    more = patterns if where == "llama" else {}
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", **{**more, **kind})
    wrapped = peft.get_peft_model(inner, config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    wrapped.save_pretrained(tmp_path / "adapter")
    model = load_model(tmp_path / "base", bridge=where.startswith("bridged-")).eval()
    read_adapter(tmp_path / "adapter").attach(model)
    torch.testing.assert_close(logits(model, pack()), their_logits(wrapped), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("where", BASES)
def test_at_its_start_the_model_computes_what_it_did_to_the_bit(where: str, tmp_path: Path) -> None:
    for fields in KINDS.values():
        model = base(where, tmp_path)
        before = logits(model, pack())
        LoRA(**fields).attach(model)
        assert torch.equal(logits(model, pack()), before)


@pytest.mark.parametrize("where", BASES)
@pytest.mark.parametrize("kind", KINDS)
def test_merged_equals_unmerged_and_comes_apart_again_to_the_bit(kind: str, where: str, tmp_path: Path) -> None:
    model = base(where, tmp_path).double()
    attached = LoRA(**KINDS[kind]).attach(model)
    model.double()
    model.compute_dtype = torch.float64
    stirred(model)
    beside, weights = logits(model, pack()), {name: p.clone() for name, p in model.named_parameters()}
    attached.merge()
    torch.testing.assert_close(logits(model, pack()), beside, rtol=1e-9, atol=1e-9)
    assert any(not torch.equal(p, weights[name]) for name, p in model.named_parameters())
    attached.unmerge()
    assert torch.equal(logits(model, pack()), beside)
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_it_is_the_definition(tmp_path: Path) -> None:
    model = base("llama", tmp_path)
    attached = LoRA(rank=2, alpha=6.0, targets="q_proj", ranks={"layers.1.*": 3}, alphas={"layers.1.*": 5.0}).attach(
        model
    )
    stirred(model)
    x = torch.randn(5, 8)
    adapted = model.adapted
    assert isinstance(adapted, Adapters)
    adapted.acting = {"default": None}  # as within a pass
    for target, scale in (("layers.0.self_attn.q_proj", 3.0), ("layers.1.self_attn.q_proj", 5.0 / 3)):
        layer = model.get_submodule(target)
        low = attached.layer(target)
        expected = x @ layer.weight.T + scale * (x @ low.A.T) @ low.B.T + layer.bias
        torch.testing.assert_close(layer(x), expected)
    assert len(attached.targets) == 2


def test_first_values_follow_from_the_seed_and_the_place(tmp_path: Path) -> None:
    found = []
    for seed in (0, 0, 1):
        model = base("llama", tmp_path)
        attached = LoRA(rank=2).attach(model, seed=seed)
        found.append({name: p.clone() for name, p in model.named_parameters() if p.requires_grad})
        assert attached.own
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not any(torch.equal(found[0][name], found[2][name]) for name in found[0] if name.endswith("A"))


def test_bad_input_is_a_sentence(tmp_path: Path) -> None:
    model = base("llama", tmp_path)
    with pytest.raises(RecipeError, match=r"rank 9 is larger than 'layers.0.self_attn.q_proj' \(16 x 8\)"):
        LoRA(rank=9).attach(model)
    with pytest.raises(UnsupportedError, match="regular expression"):
        LoRA.from_hub({"r": 2, "lora_alpha": 4, "target_modules": ".*q_proj"})
    with pytest.raises(UnsupportedError, match="'bias' is 'all'"):
        LoRA.from_hub({"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "bias": "all"})
