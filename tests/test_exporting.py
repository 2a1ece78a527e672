"""Exports: against `transformers` and `peft`, and against what the models computed before."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import danlu
import tiny
from adapter.bases import BASES, base, checkpoint, logits, pack, stirred
from adapter.test_lora import KINDS, their_logits, theirs
from adapter.test_runs import made as recipe_of
from commands import Say
from danlu.adapter.hub import read_adapter, save_adapter
from danlu.adapter.lora import LoRA
from danlu.adapter.targets import linears
from danlu.architecture.checkpoint import load_model, save_model
from danlu.architecture.hub import weight_names
from danlu.contracts import SequenceModel
from danlu.errors import CheckpointError, RecipeError, RunError, UnsupportedError
from danlu.export_terminal import progress, show
from danlu.exporting import export
from danlu.fingerprint import model_fingerprint
from danlu.packed import Packed
from danlu.parts.readout import Values
from danlu.pretrained import load_pretrained
from danlu.tensor_file import load_tensors
from engine.runs import GPT2, QWEN3, preferring, recipe

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # of peft, to itself
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]


def transformers_logits(directory: Path) -> Tensor:
    """Of each path of the pack, by `transformers`' own code."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return their_logits(model)


def adapter(where: str, folder: Path, **fields: Any) -> SequenceModel:
    """A stirred LoRA in `folder / "adapter"` over a base in `folder / "base"`; the model that wears it."""
    model = base(where, folder / "base")
    mark = model_fingerprint(model)
    attached = LoRA(**{"rank": 2, **fields}).attach(model)
    stirred(model)
    save_adapter(attached, folder / "adapter", base=str(folder / "base"), fingerprint=mark)
    return model


def tuned(where: str, folder: Path, *, everything: bool = False) -> SequenceModel:
    """A fine-tune in `folder / "tuned"` of a base in `folder / "base"`, its matrices or all of it moved."""
    model = base(where, folder / "base")
    names = {f"{layer}.weight" for layer in linears(model)}
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if everything or name in names:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    save_model(model, folder / "tuned", like=folder / "base")
    return model


@pytest.mark.parametrize("where", BASES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_adapter_is_a_checkpoint_of_transformers(kind: str, where: str, tmp_path: Path) -> None:
    model = adapter(where, tmp_path, **KINDS[kind])
    expected = logits(model, pack())
    found = export(tmp_path / "adapter", tmp_path / "merged", merge=True)
    torch.testing.assert_close(transformers_logits(tmp_path / "merged"), expected, rtol=1e-5, atol=1e-5)
    whole = load_model(tmp_path / "merged", bridge=where.startswith("bridged-")).eval()
    torch.testing.assert_close(logits(whole, pack()), expected, rtol=1e-5, atol=1e-5)
    assert set(weight_names(tmp_path / "merged")) == set(weight_names(tmp_path / "base"))
    assert (found.kind, found.path) == ("model", tmp_path / "merged")
    assert found.numbers == sum(p.numel() for p in whole.parameters())


def test_modules_that_were_trained_whole_are_merged_too(tmp_path: Path) -> None:
    expected = logits(adapter("llama", tmp_path, also_train=("*norm*", "lm_head")), pack())
    export(tmp_path / "adapter", tmp_path / "merged", merge=True)
    torch.testing.assert_close(transformers_logits(tmp_path / "merged"), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("where", ["llama", "bridged-gemma2"])
@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_what_is_written_has_the_dtype_that_was_asked_for(
    name: str, dtype: torch.dtype, where: str, tmp_path: Path
) -> None:
    adapter(where, tmp_path)
    export(tmp_path / "adapter", tmp_path / "merged", merge=True)
    small = export(tmp_path / "adapter", tmp_path / "small", merge=True, dtype=name)
    whole, found = (load_file(tmp_path / folder / "model.safetensors") for folder in ("merged", "small"))
    assert all(torch.equal(found[key], tensor.to(dtype)) for key, tensor in whole.items())
    assert json.loads((tmp_path / "small" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert small.bytes < 0.7 * (tmp_path / "merged" / "model.safetensors").stat().st_size
    export(tmp_path / "adapter", tmp_path / "cast", dtype=name)
    before, after = read_adapter(tmp_path / "adapter"), read_adapter(tmp_path / "cast")
    assert all(torch.equal(after.tensors[key], tensor.to(dtype)) for key, tensor in before.tensors.items())
    assert (after.adapter, after.base, after.fingerprint) == (before.adapter, before.base, before.fingerprint)
    export(tmp_path / "merged", tmp_path / "recast", dtype=name)
    recast = load_file(tmp_path / "recast" / "model.safetensors")
    assert all(torch.equal(recast[key], tensor) for key, tensor in found.items())


def test_names_are_those_of_the_bases_files_where_these_leave_a_prefix_out(tmp_path: Path) -> None:
    """As the first GPT-2's do."""
    expected = logits(adapter("gpt2", tmp_path), pack())
    file = tmp_path / "base" / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    export(tmp_path / "adapter", tmp_path / "merged", merge=True)
    assert set(weight_names(tmp_path / "merged")) == set(tensors)
    torch.testing.assert_close(transformers_logits(tmp_path / "merged"), expected, rtol=1e-5, atol=1e-5)


def test_what_lies_beside_weights_goes_with_them(tmp_path: Path) -> None:
    adapter("llama", tmp_path)
    (tmp_path / "base" / "generation_config.json").write_text('{"temperature": 0.5, "eos_token_id": 1}')
    (tmp_path / "base" / "tokenizer.json").write_text("base")
    (tmp_path / "base" / "chat_template.jinja").write_text("base")
    (tmp_path / "adapter" / "chat_template.jinja").write_text("adapter")
    (tmp_path / "adapter" / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    export(tmp_path / "adapter", tmp_path / "merged", merge=True)
    said = {name: (tmp_path / "merged" / name).read_text() for name in ("tokenizer.json", "chat_template.jinja")}
    assert said == {"tokenizer.json": "base", "chat_template.jinja": "adapter"}
    settings = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert settings == {"temperature": 0.5, "eos_token_id": [1, 2]}


@pytest.mark.parametrize("where", BASES)
def test_a_difference_of_full_rank_gives_the_fine_tune_back(where: str, tmp_path: Path) -> None:
    expected = logits(tuned(where, tmp_path), pack())
    full = 8
    found = export(tmp_path / "tuned", tmp_path / "delta", delta_from=tmp_path / "base", rank=full)
    assert found.errors[-1].overall < 1e-6
    assert [at.rank for at in found.errors] == [1, 2, 4, 8]
    assert not found.left_out
    torch.testing.assert_close(their_logits(theirs(tmp_path / "delta")), expected, rtol=1e-4, atol=1e-4)
    export(tmp_path / "delta", tmp_path / "again", merge=True)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("tuned", "again"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-5, atol=1e-5)


def test_errors_are_what_is_cut_off_and_the_best_that_a_rank_allows(tmp_path: Path) -> None:
    whole, before = tuned("llama", tmp_path), base("llama", tmp_path / "base")
    found = export(tmp_path / "tuned", tmp_path / "delta", delta_from=tmp_path / "base", rank=3)
    config = json.loads((tmp_path / "delta" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 3)
    tensors = load_file(tmp_path / "delta" / "adapter_model.safetensors")
    lost, norms, shares = 0.0, 0.0, {}
    for ours, hub in linears(before).items():
        difference = (whole.get_parameter(f"{ours}.weight") - before.get_parameter(f"{ours}.weight")).detach().double()
        a, b = (tensors[f"base_model.model.{hub}.lora_{which}.weight"].double() for which in "AB")
        values = torch.linalg.svdvals(difference)
        off = (difference - b @ a).norm()
        torch.testing.assert_close(off, values[3:].norm(), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(a @ a.T, torch.eye(3, dtype=torch.float64), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(b.norm(dim=0), values[:3], rtol=1e-5, atol=1e-5)
        lost, norms = lost + float(off) ** 2, norms + float(difference.norm()) ** 2
        shares[hub] = float(off / difference.norm())
    at = found.errors[-1]
    assert [each.rank for each in found.errors] == [1, 2, 3]
    assert at.overall == pytest.approx((lost / norms) ** 0.5, rel=1e-4)
    assert (at.matrix, at.worst) == (max(shares, key=shares.__getitem__), pytest.approx(max(shares.values()), rel=1e-4))
    assert found.full is not None
    assert found.full.overall < 1e-12
    assert sorted((each.overall for each in found.errors), reverse=True) == [each.overall for each in found.errors]


def test_smaller_matrices_have_their_own_full_rank_and_unchanged_ones_none(tmp_path: Path) -> None:
    folder = checkpoint("llama", tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    shutil.copytree(folder, tmp_path / "tuned")
    moved = {
        name: t + torch.randn(t.shape)
        for name, t in tensors.items()
        if name.endswith(("k_proj.weight", "o_proj.weight"))
    }
    save_file({**tensors, **moved}, tmp_path / "tuned" / "model.safetensors", {"format": "pt"})
    export(tmp_path / "tuned", tmp_path / "delta", delta_from=folder, rank=8)
    config = json.loads((tmp_path / "delta" / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["k_proj", "o_proj"]
    export(tmp_path / "delta", tmp_path / "again", merge=True)
    after = load_file(tmp_path / "again" / "model.safetensors")
    for name, tensor in {**tensors, **moved}.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-5, atol=1e-5)


def test_what_differs_outside_the_matrices_is_told_and_can_be_carried(tmp_path: Path, say: Say) -> None:
    expected = logits(tuned("llama", tmp_path, everything=True), pack())
    arguments = ("export", tmp_path / "tuned", "--delta-from", tmp_path / "base", "--rank", 8)
    answer = say(*arguments[:2], tmp_path / "some", *arguments[2:])
    assert (answer.status, answer.err) == (0, "")
    (row,) = answer.rows
    assert len(row["left_out"]) == 1 + 1 + 2 * (2 + 4 + 3) + 1
    assert "Outside the matrices 21 parameters differ, and are left out: " in row["note"]
    assert "To carry them whole: --also " in row["note"]
    carried = [*("--also", "embed_tokens", "--also", "*norm", "--also", "lm_head")]
    answer = say(*arguments[:2], tmp_path / "more", *arguments[2:], *carried)
    assert {name.rpartition(".")[2] for name in answer.rows[0]["left_out"]} == {"bias"}
    config = json.loads((tmp_path / "more" / "adapter_config.json").read_text())
    assert {"lm_head", "model.norm"} < set(config["modules_to_save"])
    answer = say(*arguments[:2], tmp_path / "all", *arguments[2:], *carried, "--also", "*_proj")
    assert "--also: no matrix of the blocks is left to be taken apart. Carry fewer" in answer.err
    biased = [x for name in ("q", "k", "v", "o", "gate", "up") for x in ("--also", f"{name}_proj")]
    answer = say(*arguments[:2], tmp_path / "most", *arguments[2:], *carried, *biased)
    missing = [f"model.layers.{i}.mlp.down_proj.bias" for i in range(2)]
    assert list(answer.rows[0]["left_out"]) == missing
    assert "2 parameters differ, and are left out" in answer.rows[0]["note"]
    model, source = load_pretrained(tmp_path / "most").eval(), load_model(tmp_path / "tuned")
    with torch.no_grad():
        for name in missing:
            own = name.removeprefix("model.")
            model.get_parameter(own).copy_(source.get_parameter(own))
    torch.testing.assert_close(logits(model, pack()), expected, rtol=1e-4, atol=1e-4)


def test_an_adapter_may_be_taken_apart_too(tmp_path: Path) -> None:
    adapter("llama", tmp_path, rank=4)
    found = export(tmp_path / "adapter", tmp_path / "smaller", delta_from=tmp_path / "base", rank=5)
    assert [at.overall < 1e-6 for at in found.errors] == [False, False, True, True]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and a LoRA's run over it, with checkpoints at 6 and 12."""
    found = tmp_path_factory.mktemp("export")
    danlu.train(recipe(found, QWEN3, out="base", steps=2, checkpoint_every=1))
    danlu.train(recipe_of(found, "lora", checkpoint_every=6))
    return found


def same_files(a: Path, b: Path) -> bool:
    names = sorted(file.name for file in a.iterdir())
    return names == sorted(file.name for file in b.iterdir()) and all(content(a / n) == content(b / n) for n in names)


def content(file: Path) -> Any:
    """Of safetensors what it holds: its head is in any order."""
    if file.suffix != ".safetensors":
        return file.read_bytes()
    tensors, metadata = load_tensors(file)
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, metadata


def test_a_runs_end_and_its_checkpoints_are_exported_as_it_would(folder: Path, tmp_path: Path) -> None:
    for run in ("run", "base"):
        last = 12 if run == "run" else 2
        export(folder / run, tmp_path / run)
        assert same_files(folder / run / "final", tmp_path / run)
        export(folder / run, tmp_path / f"{run}-last", step=last)
        assert same_files(folder / run / "final", tmp_path / f"{run}-last")
        export(folder / run, tmp_path / f"{run}-earlier", step=last // 2)
        assert not same_files(folder / run / "final", tmp_path / f"{run}-earlier")
    shutil.copytree(folder / "run", tmp_path / "unfinished", symlinks=True)
    shutil.rmtree(tmp_path / "unfinished" / "final")
    before = sorted(tmp_path.rglob("*"))
    export(tmp_path / "unfinished", tmp_path / "whole", merge=True)
    assert [path for path in sorted(tmp_path.rglob("*")) if tmp_path / "whole" not in (path, *path.parents)] == before
    adapted, whole = danlu.load(folder / "run" / "final"), danlu.load(tmp_path / "whole")
    texts = ["the furnace burns low", "nine times"]
    assert whole.log_prob(texts) == pytest.approx(adapted.log_prob(texts), abs=1e-4)
    assert whole.generate(texts, temperature=0, max_new_tokens=8) == adapted.generate(
        texts, temperature=0, max_new_tokens=8
    )


@pytest.mark.parametrize("where", [GPT2, QWEN3], ids=["gpt2", "qwen3"])
def test_a_merged_adapter_of_a_reward_model_scores_in_transformers(where: dict[str, Any], tmp_path: Path) -> None:
    start = danlu.train(preferring(tmp_path, {"name": "orpo"}, where, out="start", steps=1)).path / "final"
    made = preferring(tmp_path, "reward", steps=3)
    made |= {"model": str(start), "adapter": {"name": "lora", "rank": 2}}
    made["data"].pop("vocab_size")
    run = danlu.train(made).path
    export(run, tmp_path / "merged", merge=True)
    tokens = torch.arange(3, 11)
    with torch.no_grad():
        (expected,) = load_pretrained(run / "final").eval()(Packed.tree([tokens]), [Values(torch.tensor([7]))])
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(theirs(input_ids=tokens[None]).logits[0], expected, rtol=1e-5, atol=1e-5)
    assert "score.weight" in weight_names(tmp_path / "merged")
    with pytest.raises(CheckpointError, match="'score.weight' is 1 x 32 in the fine-tune and not there in the base"):
        export(tmp_path / "merged", tmp_path / "delta", delta_from=start, rank=2)


def test_what_cannot_be_is_a_sentence_and_writes_nothing(folder: Path, tmp_path: Path, say: Say) -> None:
    adapter("llama", tmp_path)
    checkpoint("gpt2", tmp_path / "other")
    save_model(_wider(), tmp_path / "wider")
    shutil.copytree(tmp_path / "base", tmp_path / "quantised")
    config = json.loads((tmp_path / "quantised" / "config.json").read_text())
    (tmp_path / "quantised" / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "gptq"}})
    )
    saved = read_adapter(tmp_path / "adapter")
    shutil.copytree(tmp_path / "adapter", tmp_path / "over-quantised")
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "over-quantised" / "adapter_config.json").write_text(
        json.dumps({**written, "base_model_name_or_path": str(tmp_path / "quantised")})
    )
    assert saved.base == str(tmp_path / "base")
    (tmp_path / "empty").mkdir()
    before, out = sorted(tmp_path.rglob("*")), tmp_path / "out"
    tuned_from, rank = "--delta-from", ("--rank", "2")
    wrong: list[tuple[tuple[Any, ...], str]] = [
        ((tmp_path / "base", tmp_path / "empty"), "empty: there is something already. Choose another directory"),
        ((tmp_path / "base", tmp_path / "base"), "base: there is something already"),
        ((tmp_path / "base", out, "--merge"), "this is no adapter: its weights are whole"),
        ((tmp_path / "over-quantised", out, "--merge"), "the weights are quantised (gptq)"),
        ((tmp_path / "base", out, tuned_from, tmp_path / "base", *rank), "are the same directory"),
        ((tmp_path / "base", out, tuned_from, tmp_path / "other", *rank), "is of type 'llama', and the base of type 'gpt2'"),
        ((tmp_path / "base", out, tuned_from, tmp_path / "wider", *rank), "is 12 x 8 in the fine-tune and 16 x 8 in the base"),
        ((tmp_path / "base", out, tuned_from, tmp_path / "adapter", *rank), "a base is whole, and this is an adapter"),
        ((tmp_path / "adapter", out, tuned_from, tmp_path / "base", "--rank", "9"), "rank 9 is larger than every matrix's. The largest is 8"),
        ((tmp_path / "adapter", out, tuned_from, tmp_path / "base", "--rank", "0"), "a rank of 0 is no rank"),
        ((tmp_path / "adapter", out, tuned_from, tmp_path / "base", *rank, "--also", "nrom"), "'nrom' matches no module"),
        ((tmp_path / "adapter", out, tuned_from, tmp_path / "base"), "--delta-from and --rank belong together"),
        ((tmp_path / "adapter", out, "--merge", tuned_from, tmp_path / "base", *rank), "two wishes"),
        ((tmp_path / "adapter", out, "--also", "norm"), "--also says what a difference carries whole"),
        ((tmp_path / "adapter", out, "--dtype", "fp8"), "there is no dtype 'fp8'. Known: fp32, bf16, fp16"),
        ((tmp_path / "adapter", out, "--step", "3"), "only a run has checkpoints"),
        ((tmp_path / "empty", out), "this is neither a run nor a model"),
        ((tmp_path / "nowhere", out), "this is neither a run nor a model"),
        ((folder / "run", out, "--step", "5"), "there is no checkpoint of step 5"),
    ]  # fmt: skip
    for arguments, sentence in wrong:
        answer = say("export", *arguments)
        assert (answer.status, answer.out) == (1, ""), arguments
        assert sentence in answer.err
        assert answer.err.startswith("danlu: ")
        assert "Traceback" not in answer.err
    assert sorted(tmp_path.rglob("*")) == before
    shutil.copytree(tmp_path / "base", tmp_path / "copy")
    with pytest.raises(CheckpointError, match="do not differ"):
        export(tmp_path / "copy", out, delta_from=tmp_path / "base", rank=1)


def _wider() -> SequenceModel:
    return tiny.model("llama", dtype=torch.float32, sliding_window=None, layer_types=None, intermediate_size=16)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    checkpoint("llama", tmp_path / "base")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(RunError, match="it cannot be written: Permission denied"):
        export(tmp_path / "base", closed / "out")


def test_an_adapter_for_other_weights_is_not_merged(tmp_path: Path) -> None:
    adapter("llama", tmp_path)
    save_model(base("qwen3", tmp_path / "other"), tmp_path / "base")
    with pytest.raises((CheckpointError, RecipeError, UnsupportedError)):
        export(tmp_path / "adapter", tmp_path / "merged", merge=True)
    assert not (tmp_path / "merged").exists()


def test_on_a_terminal_it_is_a_table_and_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned("llama", tmp_path)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    with progress() as heard:
        exported = export(tmp_path / "tuned", tmp_path / "delta", delta_from=tmp_path / "base", rank=3, heard=heard)
    show(exported)
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines() if line.strip()][-5:-1] == ["1", "2", "3", "full"]
    assert f"adapter of {LOW_RANK:,} numbers" in said
    assert str(tmp_path / "delta") in said.replace("\n", "")
    with torch.no_grad():
        model = base("llama", tmp_path / "base")
        model.get_parameter("norm.weight")[0] += 1
        model.get_parameter("layers.0.self_attn.q_proj.weight")[0] += 1
    save_model(model, tmp_path / "other", like=tmp_path / "base")
    show(export(tmp_path / "other", tmp_path / "one", delta_from=tmp_path / "base", rank=1))
    said = " ".join(capsys.readouterr().out.split())
    assert "Outside the matrices one parameter differs, and is left out: model.norm.weight (" in said
    assert "To carry it whole: --also norm." in said


LOW_RANK = 3 * 2 * ((16 + 8) + (8 + 8) + (8 + 8) + (8 + 16) + (12 + 8) + (12 + 8) + (8 + 12))
"""Numbers of a LoRA of rank 3 beside all matrices of the tiny Llama."""
