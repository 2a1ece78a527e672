"""Every family computes what `transformers` computes, and checkpoints go both ways."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from danlu.architecture.hub import load_hub, read_config, save_hub
from danlu.contracts import SequenceModel
from danlu.errors import UnsupportedError
from danlu.parts.rope import frequencies
from parity.oracle import CASES, Case, oracle, ours, precise, theirs, weights

ORIGINAL = {"original_max_position_embeddings": 8}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """No progress bars, and no remarks about generation settings."""
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity_warning()


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, SequenceModel, Path]:
    """A model of theirs, the same one as ours, and the directory it went through."""
    directory = tmp_path_factory.mktemp(request.param)
    model = oracle(CASES[request.param])
    model.save_pretrained(directory)
    return model, load_hub(directory), directory


@contextmanager
def in_dtype(pair: tuple[Any, SequenceModel, Path], dtype: torch.dtype) -> Iterator[tuple[Any, SequenceModel]]:
    model, _, directory = pair
    again = load_hub(directory)
    if dtype == torch.float32:
        yield model, again
    else:
        copy = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="sdpa").eval()
        yield precise(copy), again.double()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_logits_and_every_gradient_agree(pair: tuple[Any, SequenceModel, Path], dtype: torch.dtype) -> None:
    with in_dtype(pair, dtype) as (model, own):
        expected, found = theirs(model), ours(own)
    assert found[1].keys() == expected[1].keys()
    for a, b in zip(found[0], expected[0], strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a, b, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    for name, gradient in expected[1].items():
        scale = TOLERANCE[dtype] * max(1.0, float(gradient.abs().max()))
        assert gradient.abs().max() > 1e-4 or name.endswith("k_proj.bias"), (
            name
        )  # softmax knows no bias of keys but by rotation
        torch.testing.assert_close(
            found[1][name], gradient, rtol=0, atol=scale, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_a_checkpoint_of_theirs_is_taken_to_the_bit(pair: tuple[Any, SequenceModel, Path]) -> None:
    model, own, _ = pair
    names, transposed = own.config.hub_names(), own.config.hub_transposed()
    expected = weights(model)
    assert set(names.values()) == set(expected)
    for name, weight in weights(own).items():
        assert torch.equal(weight.t() if name in transposed else weight, expected[names[name]]), name


def test_a_checkpoint_of_ours_is_taken_by_them(pair: tuple[Any, SequenceModel, Path], tmp_path: Path) -> None:
    model, own, _ = pair
    save_hub(own, tmp_path)
    again, told = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="sdpa", output_loading_info=True
    )
    assert not any(told.values())
    assert type(again) is type(model)
    assert all(torch.equal(a, b) for a, b in zip(weights(again).values(), weights(model).values(), strict=True))
    for a, b in zip(theirs(again.eval())[0], theirs(model)[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-5)


def test_a_config_survives_the_way_there_and_back(pair: tuple[Any, SequenceModel, Path], tmp_path: Path) -> None:
    model, own, directory = pair
    save_hub(own, tmp_path, like=directory)
    assert read_config(tmp_path) == own.config == read_config(directory)
    found, expected = transformers.AutoConfig.from_pretrained(tmp_path).to_dict(), model.config.to_dict()
    rope = expected.get("rope_parameters") or {}
    assert rope.items() <= (found.get("rope_parameters") or {}).items()  # we may say more of it
    told_otherwise = {"transformers_version", "_name_or_path", "rope_parameters"}
    assert {k: v for k, v in found.items() if k in expected.keys() - told_otherwise} == {
        k: v for k, v in expected.items() if k not in told_otherwise
    }


def test_what_else_a_config_says_is_given_by_whoever_saves(tmp_path: Path) -> None:
    oracle(CASES["llama"]).save_pretrained(tmp_path / "theirs")
    own = load_hub(tmp_path / "theirs")
    save_hub(own, tmp_path / "ours", settings={"eos_token_id": 7})
    assert transformers.AutoConfig.from_pretrained(tmp_path / "ours").eos_token_id == 7
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["dtype"] == "float32"


def test_a_checkpoint_in_several_files_is_the_same(tmp_path: Path) -> None:
    model = oracle(CASES["llama"])
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    own = load_hub(tmp_path)
    expected = weights(model)
    assert all(torch.equal(w, expected[own.config.hub_names()[n]]) for n, w in weights(own).items())


@pytest.mark.parametrize(
    ("name", "old"),
    [
        ("llama-linear", {"rope_scaling": {"type": "linear", "factor": 3.0}, "rope_theta": 100.0}),
        ("llama-yarn", {"rope_scaling": {"type": "yarn", "factor": 4.0, **ORIGINAL}, "rope_theta": 100.0}),
        ("llama", {"rope_scaling": None, "num_key_value_heads": None}),
        ("qwen2-sliding", {"layer_types": None}),
        ("qwen3-sliding", {"layer_types": None}),
        ("qwen2-unused-window", {"layer_types": None, "sliding_window": 3}),
        ("gpt2", {"n_ctx": 32}),
    ],
)  # fmt: skip
def test_configs_of_older_files_mean_the_same(name: str, old: dict[str, Any], tmp_path: Path) -> None:
    case = CASES[name]
    if "num_key_value_heads" in old:
        case = Case(case.family, {**case.fields, "num_key_value_heads": 4})
    model = oracle(case)
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = {k: v for k, v in json.loads(file.read_text()).items() if k != "rope_parameters"}
    file.write_text(json.dumps({**config, **old}))
    for a, b in zip(ours(load_hub(tmp_path))[0], theirs(model)[0], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@given(
    kind=st.sampled_from(["default", "linear", "llama3", "yarn"]),
    theta=st.floats(10.0, 1e7),
    width=st.integers(1, 64).map(lambda n: 2 * n),
    factor=st.floats(1.0, 64.0),
    original=st.integers(8, 1 << 16),
    betas=st.tuples(st.floats(0.5, 3.0), st.floats(4.0, 60.0)),
    mscales=st.sampled_from([{}, {"mscale": 0.7, "mscale_all_dim": 1.3}, {"mscale": 0.7}, {"attention_factor": 1.5}]),
    truncate=st.booleans(),
)
def test_rotary_frequencies_are_theirs_to_the_bit(
    kind: str,
    theta: float,
    width: int,
    factor: float,
    original: int,
    betas: tuple[float, float],
    mscales: dict[str, float],
    truncate: bool,
) -> None:
    low, high = betas
    context = {"factor": factor, "original_max_position_embeddings": original}
    scaling = {
        "default": {},
        "linear": {"factor": factor},
        "llama3": {"low_freq_factor": low, "high_freq_factor": high, **context},
        "yarn": {"beta_fast": high, "beta_slow": low, "truncate": truncate, **context, **mscales},
    }[kind]
    scaling = {"rope_type": kind, **scaling}
    config = transformers.LlamaConfig(head_dim=width, rope_parameters={**scaling, "rope_theta": theta})
    if kind == "default":
        rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding
        expected, attention = rotary.compute_default_rope_parameters(config)
    else:
        expected, attention = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    found, own = frequencies(width, theta, scaling)
    assert torch.equal(found, expected)
    assert own == pytest.approx(attention, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("qwen3", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "dynamic"),
        ("qwen2", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "longrope"),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}}, "part"),
        ("gpt2", {"activation_function": "relu"}, "activation_function is 'relu'"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("gpt2", {"tie_word_embeddings": False}, "tie_word_embeddings"),
        ("llama", {"model_type": "mamba"}, "mamba"),
    ],
)
def test_what_would_be_computed_differently_is_refused(
    name: str, setting: dict[str, Any], message: str, tmp_path: Path
) -> None:
    oracle(CASES[name]).save_pretrained(tmp_path)
    load_hub(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **setting}))
    with pytest.raises(UnsupportedError, match=message):
        load_hub(tmp_path)
