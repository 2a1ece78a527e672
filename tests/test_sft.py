"""Supervised fine-tuning as a person does it: a checkpoint of `transformers`, a file of chats, the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

import danlu
from commands import Say
from danlu.architecture.checkpoint import load_model
from danlu.checking import check
from danlu.data import Tokenizer
from data.conftest import sentence
from engine.runs import lines

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GOOD = [
    {"role": "user", "content": "what burns low?"},
    {"role": "assistant", "content": "the furnace burns low."},
]


def checkpoint(folder: Path, template: str | None = CHATML, **config: Any) -> Path:
    """A tiny Qwen3 of random weights, whose end of text is also its padding."""
    trained = Tokenizer.train_bpe([sentence(i) for i in range(100)], vocab_size=320)
    trained.save(folder)
    (folder / "special_tokens_map.json").unlink()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    tokenizer.bos_token = None
    tokenizer.chat_template = template
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = Qwen3ForCausalLM(
        Qwen3Config(vocab_size=len(tokenizer), **sizes, num_key_value_heads=1, head_dim=16, eos_token_id=None, **config)
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write(file: Path, *rows: Any) -> Path:
    text = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    file.write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    return file


def chats(folder: Path, count: int = 24) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": sentence(i)}, {"role": "assistant", "content": sentence(i + 1)}]}
        for i in range(count)
    ]
    return write(folder / "chats.jsonl", *rows)


def train(say: Say, folder: Path, model: Path, file: Path, *overrides: str, steps: int = 3) -> Any:
    return say(
        *("train", "sft", f"model={model}", f"data.train={file}", f"data.cache={folder / 'cache'}"),
        *("run.device=cpu", f"run.steps={steps}", f"run.out={folder / 'run'}", "data.step_samples=4", *overrides),
    )


def test_from_chats_to_a_checkpoint_that_others_load(say: Say, tmp_path: Path) -> None:
    model, file = checkpoint(tmp_path / "model"), chats(tmp_path)
    checked = say("check", "sft", f"model={model}", f"data.train={file}")
    assert checked.status == 0
    assert checked.rows[0]["train"]["shapes"] == {"messages": 24}
    answer = train(say, tmp_path, model, file, "data.held_out=0.2")
    assert (answer.status, answer.err) == (0, "")
    (told,) = [row for row in answer.rows if row.get("kind") == "data"]
    assert 0 < told["learned"] < told["targets"]
    assert "messages" in next(row["message"] for row in answer.rows if row.get("kind") == "doctor")
    assert (tmp_path / "run" / "data.html").is_file()
    final = tmp_path / "run" / "final"
    theirs = AutoModelForCausalLM.from_pretrained(final)
    ours = load_model(final)
    saved = dict(theirs.named_parameters())
    names = {name: name if name.startswith("lm_head") else f"model.{name}" for name, _ in ours.named_parameters()}
    assert all(torch.equal(p, saved[names[name]]) for name, p in ours.named_parameters())
    tokenizer = AutoTokenizer.from_pretrained(final)
    assert tokenizer.chat_template == CHATML
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in theirs.generation_config.eos_token_id
    scored = say("eval", final, f"data.eval={file}", f"data.cache={tmp_path / 'cache'}")
    assert scored.status == 0
    assert scored.rows[0]["samples"] == 24


def test_the_loss_is_that_of_transformers_on_the_assistants_tokens(say: Say, tmp_path: Path) -> None:
    model, file = checkpoint(tmp_path / "model"), chats(tmp_path, 4)
    assert train(say, tmp_path, model, file, steps=1).status == 0
    (row,) = lines(tmp_path / "run" / "metrics.jsonl")
    tokenizer, theirs = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    total, count = 0.0, 0
    for line in lines(file):
        prompt = tokenizer.apply_chat_template(line["messages"][:1], add_generation_prompt=True, tokenize=False)
        text = tokenizer.apply_chat_template(line["messages"], tokenize=False)
        asked, said = (tokenizer.encode(part) for part in (prompt, text.removeprefix(prompt)))
        whole = [*asked, *said]
        end = len(whole) - whole[::-1].index(tokenizer.eos_token_id)
        logits = theirs(torch.tensor([whole])).logits[0].log_softmax(-1).detach()
        total -= sum(float(logits[i - 1, whole[i]]) for i in range(len(asked), end))
        count += end - len(asked)
    assert row["loss"] == pytest.approx(total / count, rel=1e-5)


def test_both_ways_to_run_a_checkpoint_give_the_same_losses(say: Say, tmp_path: Path) -> None:
    model, file = checkpoint(tmp_path / "model"), chats(tmp_path)
    losses = []
    for bridge in (False, True):
        folder = tmp_path / str(bridge)
        folder.mkdir()
        assert train(say, folder, model, file, f"model.bridge={str(bridge).lower()}").status == 0
        losses.append([row["loss"] for row in lines(folder / "run" / "metrics.jsonl")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_template_that_is_given_goes_with_the_model(say: Say, tmp_path: Path) -> None:
    model, file = checkpoint(tmp_path / "model", template=None), chats(tmp_path)
    refused = train(say, tmp_path, model, file)
    assert refused.status == 1
    assert "chats.jsonl:1: the tokenizer has no chat template" in refused.err
    assert not (tmp_path / "run").exists()
    assert train(say, tmp_path, model, file, "data.chat_template=chatml").status == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "final")
    rendered = tokenizer.apply_chat_template(GOOD, tokenize=False)
    assert rendered.startswith("<|im_start|>user\nwhat burns low?<|im_end|>\n<|im_start|>assistant\n")
    settings = json.loads((tmp_path / "run" / "final" / "generation_config.json").read_text())
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in settings["eos_token_id"]


BAD = [
    ({"messages": [GOOD[0], {"role": "system", "content": "b"}, GOOD[1]]}, "system"),
    ({"messages": [{"role": "usr", "content": "a"}, *GOOD]}, "'usr'"),
    ({"messages": [{"role": "user", "content": None}, *GOOD[1:]]}, "null"),
    ({"messages": [{"role": "user", "content": 5}, *GOOD[1:]]}, "number"),
    ({"messages": GOOD[:1]}, "ends with"),
    ({"messages": json.dumps(GOOD)}, "JSON inside JSON"),
    ("{not json", "not JSON"),
    ({"who": "knows"}, "no shape"),
]


@pytest.mark.parametrize(("row", "words"), BAD)
def test_a_bad_row_is_named_and_the_run_refused_or_goes_on_without_it(
    say: Say, tmp_path: Path, row: Any, words: str
) -> None:
    model = checkpoint(tmp_path / "model")
    good = lines(chats(tmp_path))
    file = write(tmp_path / "some.jsonl", good[0], row, *good[1:])
    refused = train(say, tmp_path, model, file)
    assert refused.status == 1
    assert "some.jsonl:2: " in refused.err
    assert words in refused.err
    assert "Traceback" not in refused.err
    assert not (tmp_path / "run").exists()
    checked = say("check", "sft", f"model={model}", f"data.train={file}")
    assert checked.status == 1
    assert any(e["where"].endswith("some.jsonl:2") for f in checked.rows[0]["findings"] for e in f["examples"])
    aside = tmp_path / "aside"
    went_on = train(say, tmp_path, model, file, "--quarantine", str(aside))
    assert (went_on.status, went_on.err) == (0, "")
    assert next(r for r in went_on.rows if r.get("kind") == "data")["faults"] == 1
    (kept,) = lines(aside / "some.jsonl.jsonl")
    assert kept["where"].endswith("some.jsonl:2")


def test_a_fraction_held_out_is_examined_on_its_side(tmp_path: Path) -> None:
    model, file = checkpoint(tmp_path / "model"), chats(tmp_path, 60)
    found = check("sft", f"model={model}", f"data.train={file}", "data.held_out=0.25")
    assert found.train.rows + found.held_out.rows == 60
    assert 5 <= found.held_out.rows <= 25
    some = check("sft", f"model={model}", f"data.train={file}", rows=10)
    assert (some.train.rows, some.rows_in_all) == (10, 60)


def test_a_folder_without_weights_or_with_a_shard_missing_is_named(say: Say, tmp_path: Path) -> None:
    file, model = chats(tmp_path), checkpoint(tmp_path / "model")
    (model / "model.safetensors").unlink()
    assert f"{model}" in train(say, tmp_path, model, file).err
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    answer = train(say, tmp_path, model, file)
    assert answer.status == 1
    assert "model-00001-of-00002.safetensors" in answer.err


def test_resuming_is_exact_where_the_data_are_chats(say: Say, tmp_path: Path) -> None:
    model, file = checkpoint(tmp_path / "model"), chats(tmp_path)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    assert train(say, whole, model, file, "run.checkpoint_every=3", steps=6).status == 0
    assert train(say, parts, model, file, "run.checkpoint_every=3", steps=6).status == 0
    assert say("resume", parts / "run", "--step", "3").status == 0
    first, again = ((f / "run" / "final" / "model.safetensors").read_bytes() for f in (whole, parts))
    assert first == again


def test_an_adapter_of_chats_says_what_ends_a_turn(say: Say, tmp_path: Path) -> None:
    """So does what it is merged into."""
    model, file = checkpoint(tmp_path / "model"), chats(tmp_path)
    answer = train(say, tmp_path, model, file, "adapter=lora")
    assert (answer.status, answer.err) == (0, "")
    assert say("export", tmp_path / "run", tmp_path / "merged", "--merge").status == 0
    (end,) = AutoTokenizer.from_pretrained(model).encode("<|im_end|>")
    for folder in (tmp_path / "run" / "final", tmp_path / "merged"):
        assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [end]
        assert danlu.load(folder).stop == {end}
    inputs = AutoTokenizer.from_pretrained(tmp_path / "merged").apply_chat_template(GOOD[:1], return_tensors="pt")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert loaded.generation_config.eos_token_id == [end]
    assert inputs is not None
