"""The bridge: any causal model of `transformers` packed, with what the model itself gives for each sequence alone."""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from architecture import bridged as tiny
from danlu.architecture import bridge, bridge_attention
from danlu.architecture.bridge import Bridged, load_bridged, save_bridged
from danlu.architecture.checkpoint import load_model, save_model
from danlu.architecture.hub import load_hub
from danlu.errors import CheckpointError, DanluError, UnsupportedError
from danlu.generate import Sampling, complete
from danlu.packed import ROOT, Packed, Targets
from danlu.parts import attention as attention_module
from danlu.parts.attention import attend_reference
from danlu.parts.block import Pass
from danlu.parts.linear import Dropout
from danlu.parts.readout import Hidden, Likelihood, Logits, LogProbs
from danlu.random import place_key
from strategies import keyed

TOLERANCE = 5e-5
OURS = ("llama", "qwen2", "qwen3", "gpt2")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """No progress bars, and no remarks about generation settings."""
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity_warning()


@pytest.fixture(scope="module", params=tiny.CARRIED)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in hub format for each architecture."""
    directory: Path = tmp_path_factory.mktemp(request.param)
    tiny.build(request.param).save_pretrained(directory)
    return directory


def read(directory: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(directory).eval()


def test_packed_equals_the_models_own_forward_one_by_one(saved: Path) -> None:
    packed, wanted = tiny.forest()
    found = tiny.together(load_bridged(saved), packed, wanted)
    assert tiny.worst_error(found, tiny.one_by_one(read(saved), packed, wanted)) < TOLERANCE


def test_it_is_saved_as_it_was_found(saved: Path, tmp_path: Path) -> None:
    model = load_bridged(saved)
    save_bridged(model, tmp_path / "new", like=saved, settings={"eos_token_id": 7})
    text = (tmp_path / "new" / "config.json").read_text()
    assert "danlu" not in text
    again, told = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not any(told.values())
    assert again.config.eos_token_id == 7
    weights, expected = again.state_dict(), read(saved).state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    before = json.loads((saved / "config.json").read_text())
    assert json.loads(text) == {**before, "eos_token_id": 7}


def test_generation_with_kept_keys_is_generation_without(saved: Path) -> None:
    model = load_bridged(saved)
    prompts = [[3, 4, 5, 6, 7, 8], [9], [10, 11, 12]]
    written = complete(model, prompts, Sampling(temperature=0, max_new_tokens=6), max_active=2)
    for prompt, one in zip(prompts, written, strict=True):
        tokens = [*prompt]
        for token in one.tokens:
            with torch.no_grad():
                (logits,) = model(Packed.tree([tokens]), [Logits(torch.tensor([len(tokens) - 1]))])
            best = logits[0].topk(2).values
            assert int(logits[0].argmax()) == token or float(best[0] - best[1]) < 1e-4
            tokens.append(token)


def test_every_parameter_has_one_name_and_the_readouts_agree(saved: Path) -> None:
    model = load_bridged(saved)
    names = [name for name, _ in model.named_parameters()]
    assert names == [name for name, _ in copy.deepcopy(model).named_parameters()]
    assert len({id(p) for p in model.parameters()}) == len(names)
    packed, wanted = tiny.forest()
    rows = torch.arange(len(packed))
    with torch.no_grad():
        logits, log_probs, sums, hidden = model(
            packed, [Logits(rows), LogProbs(wanted), Likelihood(wanted), Hidden(rows[:2])]
        )
    expected = logits.log_softmax(1).gather(1, wanted.tokens[:, None]).squeeze(1)
    torch.testing.assert_close(log_probs, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(-(log_probs * wanted.weights).sum(), sums.nll, rtol=1e-4, atol=1e-3)
    assert hidden.shape == (2, model._head.in_features)


def test_what_other_rooms_read_of_it(saved: Path) -> None:
    model, packed = load_bridged(saved), tiny.forest()[0]
    layers, groups, width = model.config.memory_shape
    assert model.config.vocabulary == tiny.VOCABULARY
    assert model.config.model_type == json.loads((saved / "config.json").read_text())["model_type"]
    assert len(list(model.blocks)) == layers == 2
    assert {id(p) for block in model.blocks for p in block.parameters()} < {id(p) for p in model.parameters()}
    assert all(layer.groups == groups and layer.key_width == width for layer in model.layers)
    assert (model.config.longest is not None) == (model.config.model_type in ("gpt2", "opt"))
    assert model.flops(packed, 5) - model.flops(packed, 0) == 10 * model._head.weight.numel()
    assert model.flops(Packed.join([packed, packed]), 5) == model.flops(packed, 2) + model.flops(packed, 3)
    assert model.flops(Packed.empty(), 0) == 0


def test_an_empty_pack_gives_zero_loss_and_zero_gradients(saved: Path) -> None:
    loss, gradients = tiny.together(load_bridged(saved), Packed.empty(), Targets.none())
    assert float(loss) == 0
    assert gradients
    assert not any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("kind", OURS)
def test_our_own_families_and_the_bridge_give_the_same(kind: str, tmp_path: Path) -> None:
    tiny.build(kind).save_pretrained(tmp_path)
    packed, wanted = tiny.forest()
    own, other = load_hub(tmp_path), load_bridged(tmp_path)
    (loss, gradients), (expected, others) = tiny.together(own, packed, wanted), tiny.together(other, packed, wanted)
    names, transposed = own.config.hub_names(), own.config.hub_transposed()
    renamed = {names[n]: g.t() if n in transposed else g for n, g in gradients.items()}
    assert tiny.worst_error((loss, renamed), (expected, others)) < TOLERANCE
    assert own.flops(packed, 9) == other.flops(packed, 9)
    assert own.config.memory_shape == other.config.memory_shape
    assert (own.config.vocabulary, own.config.longest) == (other.config.vocabulary, other.config.longest)


def test_a_directory_is_ours_where_it_can_be_and_bridged_otherwise(tmp_path: Path) -> None:
    for name, kind, changes in (
        ("ours", "llama", {}),
        ("refused", "llama", {"hidden_act": "gelu"}),
        ("other", "olmo2", {}),
    ):
        tiny.build(kind, **changes).save_pretrained(tmp_path / name)
        model = load_model(tmp_path / name)
        assert isinstance(model, Bridged) == (name != "ours")
        save_model(model, tmp_path / "again", like=tmp_path / name)
        assert type(load_model(tmp_path / "again")) is type(model)


def test_its_operations_are_those_torch_counts() -> None:
    for kind in ("llama", "gpt2", "gemma2", "deepseek_v3"):
        changes = {"first_k_dense_replace": 2} if kind == "deepseek_v3" else {}
        model, pack = tiny.bridged(kind, **changes), Packed.tree([[5] * 7], causal=False)
        counter = FlopCounterMode(display=False)
        with patch.object(attention_module, "backend_for", lambda _: attend_reference), torch.no_grad(), counter:
            model(pack, [Logits(torch.arange(3))])
        wide = sum(2 * 7 * 7 * x.heads * (x.key_width - x.value_width) for x in model.layers)  # padded
        hidden = sum(
            2 * x.heads * (x.key_width + x.value_width) * (49 - pack.visible_pairs(x.window)) for x in model.layers
        )
        assert model.flops(pack, 3) == counter.get_total_flops() - wide - hidden


def test_of_experts_those_that_are_chosen_count() -> None:
    sizes = [tiny.bridged("qwen3_moe", num_experts=n).flops(Packed.tree([[5]]), 0) for n in (4, 8)]
    assert sizes[1] - sizes[0] == 2 * 2 * 4 * 16  # the router alone, in two layers


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_it_trains_in_half_precision(kind: str) -> None:
    model, (packed, wanted) = tiny.bridged(kind), tiny.forest()
    (exact,) = model(packed, [Likelihood(wanted)])
    model.compute_dtype = torch.bfloat16
    (sums,) = model(packed, [Likelihood(wanted)])
    assert sums.loss.dtype == torch.float32
    torch.testing.assert_close(sums.loss, exact.loss, rtol=0.1, atol=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(8):
        optimizer.zero_grad()
        model(packed, [Likelihood(wanted)])[0].loss.backward()
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in model.parameters())
        optimizer.step()
    assert model(packed, [Likelihood(wanted)])[0].loss.item() < 0.9 * exact.loss.item()


def test_dropout_of_attention_is_keyed_and_packing_does_not_change_it() -> None:
    model = tiny.bridged("llama", attention_dropout=0.4)
    for name, module in model.named_modules():
        if isinstance(module, Dropout):
            module.place.fill_(place_key(name))
    packed, _ = tiny.forest()
    rows = [Hidden(torch.arange(len(packed)))]
    (plain,), (dropped,) = model(packed, rows), model(keyed(packed), rows)
    assert not torch.allclose(plain, dropped)
    assert torch.equal(dropped, model.train()(keyed(packed), rows)[0])
    for path, where in packed.unroll():
        (alone,) = model(keyed(path), [Hidden(torch.arange(len(path)))])
        torch.testing.assert_close(alone, dropped[where], rtol=1e-4, atol=1e-5)
    assert not any("attention_dropout" in note for note in model.notes)
    assert set(model.state_dict()) == set(tiny.bridged("llama").state_dict())


def test_what_torchs_generator_would_drop_is_kept_and_said() -> None:
    model = tiny.bridged("gpt2", embd_pdrop=0.3, resid_pdrop=0.2, attn_pdrop=0.0)
    packed, _ = tiny.forest()
    rows, state = [Hidden(torch.arange(len(packed)))], torch.get_rng_state()
    assert torch.equal(model.train()(packed, rows)[0], model.eval()(packed, rows)[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert [note.split("=")[0] for note in model.notes] == ["resid_pdrop", "embd_pdrop"]
    assert any("router_aux_loss_coef" in note for note in tiny.bridged("qwen3_moe", router_aux_loss_coef=0.1).notes)


def test_loading_disturbs_neither_randomness_nor_what_transformers_says(tmp_path: Path) -> None:
    tiny.build("llama", attention_dropout=0.3).save_pretrained(tmp_path)
    transformers.logging.set_verbosity_info()
    transformers.logging.enable_progress_bar()
    state = torch.get_rng_state()
    model = load_bridged(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert transformers.logging.get_verbosity() == transformers.logging.INFO
    assert transformers.logging.is_progress_bar_enabled()
    assert not any(module.training for module in model.inner.modules())
    assert all(p.grad is None and p.dtype == torch.float32 for p in model.parameters())


def test_several_axes_of_positions_are_refused() -> None:
    packed, _ = tiny.forest()
    with pytest.raises(UnsupportedError, match="one position a token"):
        tiny.bridged("llama")(replace(packed, positions=packed.positions[:, None]), [])


_DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "short_factor": [1.0, 1.0],
    "long_factor": [2.0, 2.0],
    "original_max_position_embeddings": 8,
}
_NESTED = {"full_attention": _DYNAMIC, "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "dynamic rotary": ("llama", {"rope_parameters": _DYNAMIC}, "rotary scaling 'dynamic' of 'llama'"),
    "long rotary": ("phi3", {"rope_parameters": _LONG}, "rotary scaling 'longrope' of 'phi3'"),
    "rotary of some layers": ("gemma3_text", {"rope_parameters": _NESTED}, "rotary scaling 'dynamic'"),
    "state spaces": ("mamba", {"state_size": 4}, "'mamba'"),
    "linear attention": ("qwen3_next", {"layer_types": ["linear_attention", "full_attention"]}, "'qwen3_next'"),
    "convolutions": ("lfm2", {"layer_types": ["conv", "full_attention"]}, "'lfm2'"),
    "recurrence": ("rwkv", {"attention_hidden_size": 16}, "'rwkv'"),
    "slopes": ("bloom", {"n_head": 4, "n_layer": 2}, "'bloom'"),
    "slopes on request": ("falcon", {"alibi": True}, "'falcon'"),
    "more slopes": ("mpt", {"d_model": 16, "n_heads": 4, "n_layers": 2}, "'mpt'"),
    "chunks": ("llama4_text", {"attention_chunk_size": 4, "head_dim": 4, "num_local_experts": 2, "intermediate_size_mlp": 20}, "'llama4_text'"),
    "an encoder": ("bert", {}, "'bert'"),
    "own attention": ("gptj", {"n_embd": 16, "n_layer": 2, "n_head": 4, "rotary_dim": 4}, "'gptj'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_packed_is_refused_by_name(name: str) -> None:
    kind, changes, message = REFUSED[name]
    with pytest.raises(UnsupportedError) as caught:
        tiny.bridged(kind, **changes)
    assert message in str(caught.value)


def leaking(*args: Any, attend: Any = bridge_attention.attend, **given: Any) -> tuple[Tensor, None]:
    """Attention to all that came before in the pack."""
    return attend(*args, **{**given, "danlu": Pass.of(Packed.tree([[0] * args[1].shape[2]]), None)})


def test_the_look_at_numbers_sees_what_is_wrong() -> None:
    good = tiny.build("llama")
    with patch.object(bridge_attention, "attend", leaking), pytest.raises(UnsupportedError, match="neighbours"):
        Bridged(good)
    with patch.object(bridge, "logit_rule", lambda _: (0.5, None)), pytest.raises(UnsupportedError, match="computes"):
        Bridged(good)
    Bridged(good)


def test_the_look_at_masks_sees_a_window_that_attention_is_not_told_of() -> None:
    model = tiny.build("mistral", sliding_window=4096)
    for layer in model.model.layers:
        layer.self_attn.forward = _without_window(layer.self_attn.forward)
    Bridged(tiny.build("mistral", sliding_window=4096))
    with pytest.raises(UnsupportedError, match="without a window, while its mask sees 4096 back"):
        Bridged(model)


def _without_window(forward: Callable[..., Any]) -> Callable[..., Any]:
    def changed(*args: Any, **kwargs: Any) -> Any:
        with patch.object(forward.__self__.config, "sliding_window", None):  # type: ignore[attr-defined]
            return forward(*args, **kwargs)

    return changed


def change_config(directory: Path, **entries: object) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def change_weights(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def one_shard_gone(directory: Path) -> None:
    read(directory).save_pretrained(directory, max_shard_size="4KB")
    (directory / "model.safetensors").unlink()
    min(directory.glob("model-*.safetensors")).unlink()


def cut_short(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


FAULTS: dict[str, tuple[Callable[[Path], object], type[DanluError], str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), CheckpointError, "the file is absent"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), CheckpointError, "there is no model.safetensors"),
    "pickles": (
        lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
        CheckpointError,
        "convert them to safetensors",
    ),
    "a shard gone": (one_shard_gone, CheckpointError, "model-00001-of"),
    "cut short": (cut_short, CheckpointError, "cut short or altered"),
    "a weight gone": (
        lambda d: change_weights(d, lambda w: w.pop("model.norm.weight")),
        CheckpointError,
        "1 weights are missing, 'model.norm.weight' first",
    ),
    "a weight of another shape": (
        lambda d: change_weights(d, lambda w: w.update({"model.norm.weight": torch.ones(3)})),
        CheckpointError,
        "transformers cannot load it",
    ),
    "code of its own": (
        lambda d: change_config(d, model_type="mine", auto_map={"AutoModelForCausalLM": "code.Mine"}),
        UnsupportedError,
        "trust_remote_code",
    ),
    "an unknown type": (lambda d: change_config(d, model_type="olmo9"), UnsupportedError, "no model_type 'olmo9'"),
    "no causal type": (lambda d: change_config(d, model_type="t5"), UnsupportedError, "'t5' is not a causal one"),
    "an encoder and a decoder": (
        lambda d: change_config(d, model_type="bart", is_encoder_decoder=True),
        UnsupportedError,
        "'bart' is not a causal one",
    ),
    "quantised": (
        lambda d: change_config(d, quantization_config={"quant_method": "gptq"}),
        UnsupportedError,
        "quantised (gptq)",
    ),
    "dynamic rotary, as older files say it": (
        lambda d: change_config(d, rope_parameters=None, rope_scaling={"type": "dynamic", "factor": 2.0}),
        UnsupportedError,
        "'dynamic'",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_directory_is_said(fault: str, tmp_path: Path) -> None:
    tiny.build("olmo2").save_pretrained(tmp_path)
    change, kind, message = FAULTS[fault]
    change(tmp_path)
    for load in (load_bridged, load_model):
        with pytest.raises(kind) as caught:
            load(tmp_path)
        assert message in str(caught.value)


def test_a_directory_that_is_not_there_is_said(tmp_path: Path) -> None:
    for load in (load_bridged, load_model):
        with pytest.raises(CheckpointError, match="no such model directory"):
            load(tmp_path / "nowhere")


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class MineConfig(LlamaConfig):
    model_type = "mine"


class Mine(LlamaForCausalLM):
    config_class = MineConfig
"""


def test_code_of_a_checkpoint_runs_when_it_is_trusted_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    directory = tmp_path / "checkpoint"
    tiny.build("llama").save_pretrained(directory)
    (directory / "mine.py").write_text(CODE)
    classes = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.Mine"}
    change_config(directory, model_type="mine", auto_map=classes)
    with pytest.raises(UnsupportedError, match="'mine' is code that comes with the checkpoint"):
        load_model(directory)
    model = load_model(directory, trust_remote_code=True)
    save_model(model, tmp_path / "again", like=directory)
    packed, wanted = tiny.forest()
    losses = [
        m(packed, [Likelihood(wanted)])[0].loss for m in (model, load_model(tmp_path / "again", trust_remote_code=True))
    ]
    assert torch.equal(*losses)


def test_weights_without_a_place_are_noted(tmp_path: Path) -> None:
    tiny.build("olmo2").save_pretrained(tmp_path)
    change_weights(tmp_path, lambda w: w.update({"vision.weight": torch.ones(2)}))
    assert load_bridged(tmp_path).notes == (
        "1 weights have no place in the model and are left out, 'vision.weight' first",
    )


def test_without_transformers_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.build("olmo2").save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UnsupportedError, match=r"pip install danlu\[hub\]"):
        load_model(tmp_path)


def test_settings_for_generation_are_kept_even_where_they_contradict_each_other(tmp_path: Path) -> None:
    tiny.build("olmo2").save_pretrained(tmp_path / "like")
    settings = {"do_sample": False, "temperature": 0.6, "eos_token_id": [3, 4]}
    (tmp_path / "like" / "generation_config.json").write_text(json.dumps(settings))
    model = load_bridged(tmp_path / "like")
    save_bridged(model, tmp_path / "new", like=tmp_path / "like")
    assert json.loads((tmp_path / "new" / "generation_config.json").read_text()) == settings
    assert model.inner.generation_config.eos_token_id == [3, 4]


def test_a_scale_and_a_cap_of_logits_are_read_from_the_config() -> None:
    assert bridge.logit_rule(tiny.build("granite")) == (pytest.approx(1 / 3), None)
    assert bridge.logit_rule(tiny.build("cohere")) == (0.3, None)
    assert bridge.logit_rule(tiny.build("gemma2")) == (1.0, 3.0)
    assert bridge.logit_rule(tiny.build("llama")) == (1.0, None)


def test_masks_are_read_as_windows() -> None:
    overlay = transformers.masking_utils

    def window(mask: Any) -> int:
        return int(bridge_attention.observed_mask(mask_function=mask))

    assert window(overlay.causal_mask_function) == 0
    assert window(overlay.sliding_window_causal_mask_function(5)) == 5
    assert window(overlay.chunked_causal_mask_function(7, torch.zeros(1, dtype=torch.int64))) == (1 << 18) % 7
    assert window(lambda b, h, q, k: (k <= q) & (k % 2 == 1)) == -1


def test_a_copy_of_it_is_a_model_of_its_own() -> None:
    model, (packed, wanted) = tiny.bridged("llama", attention_dropout=0.3), tiny.forest()
    other = copy.deepcopy(model)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in other.parameters()}
    with torch.no_grad():
        next(iter(other.parameters())).mul_(2)
    losses = [m(packed, [Likelihood(wanted)])[0].loss.item() for m in (model, other)]
    assert math.isfinite(losses[1])
    assert losses[0] != losses[1]
    assert [m.layers[0].module is next(iter(m.blocks)).self_attn for m in (model, other)] == [True, True]


def test_a_pack_of_full_segments_and_chains_goes_through_as_through_our_own_family(tmp_path: Path) -> None:
    tiny.build("llama").save_pretrained(tmp_path)
    packed = Packed.tree([[2, 3, 4], [5, 6], [7, 8, 9]], parents=[ROOT, 0, 1], causal=[False, True, False])
    rows = [Logits(torch.arange(len(packed)))]
    torch.testing.assert_close(load_bridged(tmp_path)(packed, rows)[0], load_hub(tmp_path)(packed, rows)[0])
