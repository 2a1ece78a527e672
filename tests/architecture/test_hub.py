"""Checkpoints in hub format: what is written is read again, and what is wrong with a directory is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from danlu.architecture.hub import load_hub, read_config, save_hub
from danlu.errors import CheckpointError, DanluError, UnsupportedError


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_hub(tiny.model("llama", dtype=torch.float32), tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_what_is_saved_is_loaded_to_the_bit(name: str, tmp_path: Path) -> None:
    model = tiny.model(name, dtype=torch.float32)
    save_hub(model, tmp_path / "new" / "directory")
    again = load_hub(tmp_path / "new" / "directory")
    assert type(again) is type(model)
    state = again.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    kept = model.config.model_dump(exclude={"hidden_dropout"})  # the hub's format has no place for it
    assert again.config.model_dump(exclude={"hidden_dropout"}) == kept


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_half_precision_is_written_as_it_is_and_read_in_single(name: str, tmp_path: Path) -> None:
    model = tiny.model(name, dtype=torch.bfloat16)
    save_hub(model, tmp_path)
    assert {w.dtype for w in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    again = load_hub(tmp_path)
    assert all(p.dtype == torch.float32 for p in again.parameters())
    assert all(torch.equal(a, b.float()) for a, b in zip(again.parameters(), model.parameters(), strict=True))


def test_weights_of_the_base_model_alone_are_understood(tmp_path: Path) -> None:
    model = tiny.model("gpt2", dtype=torch.float32)
    save_hub(model, tmp_path)
    file = tmp_path / "model.safetensors"
    bare = {name.removeprefix("transformer."): weight for name, weight in load_file(file).items()}
    save_file({**bare, "h.0.attn.bias": torch.ones(1, 1, 4, 4)}, file)
    assert all(torch.equal(a, b) for a, b in zip(load_hub(tmp_path).parameters(), model.parameters(), strict=True))


def change_config(directory: Path, **entries: object) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def change_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        weights = load_file(directory / "model.safetensors")
        change(weights)
        save_file(weights, directory / "model.safetensors")

    return apply


def cut_short(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def only_pickles(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def index(directory: Path, file: str) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": file}}))


FAULTS: dict[str, tuple[Callable[[Path], object], type[DanluError], str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), CheckpointError, "config.json: the file is absent"),
    "config no json": (lambda d: (d / "config.json").write_text("{"), CheckpointError, "the file is not JSON"),
    "config a list": (lambda d: (d / "config.json").write_text("[]"), CheckpointError, "holds no JSON object"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), CheckpointError, "there is no model.safetensors"),
    "pickles": (only_pickles, CheckpointError, "pickle files are not loaded"),
    "cut short": (cut_short, CheckpointError, "model.safetensors: the file is cut short or altered"),
    "missing": (
        change_weights(lambda w: w.pop("model.norm.weight")), CheckpointError, "1 weights are missing, 'norm",
    ),
    "superfluous": (
        change_weights(lambda w: w.update(new=torch.ones(1))), CheckpointError, "weight 'new' has no place in llama",
    ),
    "misshapen": (
        change_weights(lambda w: w.update({"model.norm.weight": torch.ones(3)})), CheckpointError,
        r"weight 'model.norm.weight' is of shape \(3,\), the config asks for \(8,\)",
    ),
    "shard absent": (lambda d: index(d, "other.safetensors"), CheckpointError, "other.safetensors: the file is absent"),
    "shard outside": (lambda d: index(d, "../model.safetensors"), CheckpointError, "outside the directory"),
    "heads": (lambda d: change_config(d, num_attention_heads=3), CheckpointError, "not a multiple"),
    "no heads": (lambda d: change_config(d, num_attention_heads=None), CheckpointError, "the config cannot be meant"),
    "unknown": (lambda d: change_config(d, model_type="mamba"), UnsupportedError, "model_type 'mamba'.*Known: .*llama"),
    "no type": (lambda d: change_config(d, model_type=None), UnsupportedError, "model_type None"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_checkpoint_is_said(fault: str, saved: Path) -> None:
    load_hub(saved)
    spoil, kind, message = FAULTS[fault]
    spoil(saved)
    with pytest.raises(kind, match=message):
        load_hub(saved)


def test_a_directory_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such model directory"):
        load_hub(tmp_path / "nowhere")


def test_a_head_beside_a_tied_embedding_is_left_out(tmp_path: Path) -> None:
    model = tiny.model("qwen2", dtype=torch.float32)
    save_hub(model, tmp_path)
    change_weights(lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(load_hub(tmp_path).parameters(), model.parameters(), strict=True))


def test_what_else_the_first_checkpoint_said_is_kept(saved: Path, tmp_path: Path) -> None:
    change_config(saved, eos_token_id=5, custom="kept")
    (saved / "generation_config.json").write_text('{"temperature": 0.5}')
    model = load_hub(saved)
    save_hub(model, tmp_path / "out", like=saved)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["eos_token_id"], config["custom"]) == (5, "kept")
    assert (tmp_path / "out" / "generation_config.json").read_text() == '{"temperature": 0.5}'
    assert read_config(tmp_path / "out") == model.config
