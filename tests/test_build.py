from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import danlu
from danlu.build import assemble
from danlu.data import Tokenizer
from danlu.errors import CheckpointError, DanluError, DataError, RecipeError, UnsupportedError
from danlu.reading import load_recipe
from engine.runs import GPT2, QWEN3, experiment, groups, recipe, weights


def sentence(kind: type[DanluError], made: object, *overrides: str) -> str:
    with pytest.raises(kind) as caught:
        assemble(load_recipe(made, overrides))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of three updates, and its tokenizer."""
    return danlu.train(recipe(tmp_path_factory.mktemp("trained"), QWEN3, steps=3)).path / "final"


def test_what_a_recipe_leaves_open_is_filled_in(tmp_path: Path) -> None:
    parts = experiment(recipe(tmp_path, GPT2))
    assert parts.recipe.model.vocab_size == parts.data.tokenizer.vocab_size == 300
    assert parts.steps == 12
    assert parts.policy.wte.weight.shape == (300, 32)
    assert parts.device.kind == "cpu"
    assert experiment(recipe(tmp_path, {**GPT2, "vocab_size": 512})).policy.wte.weight.shape == (512, 32)


def test_steps_of_epochs_are_counted(tmp_path: Path) -> None:
    made = recipe(tmp_path, epochs=3)
    parts = experiment(made)
    samples, tokens = parts.data.train.expected
    assert parts.steps == -(-3 * samples // 5)
    made["data"] |= {"step_samples": None, "step_tokens": 50}
    assert experiment(made).steps == -(-3 * tokens // 50)


def test_the_seed_decides_the_weights(tmp_path: Path) -> None:
    first, again, other = (
        experiment(recipe(tmp_path, GPT2), f"run.seed={seed}").policy.wte.weight for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_place_that_draws_has_a_key_of_its_own(tmp_path: Path) -> None:
    places = [b for name, b in experiment(recipe(tmp_path, GPT2)).policy.named_buffers() if name.endswith("place")]
    assert len(places) == 7
    assert len({int(place) for place in places}) == 7


def test_a_model_of_the_hub_brings_its_weights_and_its_tokenizer(tmp_path: Path, trained: Path) -> None:
    made = recipe(tmp_path)
    made["model"] = str(trained)
    parts = experiment(made)
    (trained / "generation_config.json").write_text(json.dumps({"temperature": 0.5}))
    assert parts.data.tokenizer.fingerprint == Tokenizer.load(trained).fingerprint
    for name, weight in weights(trained.parent).items():
        assert torch.equal(parts.policy.get_parameter(name.removeprefix("model.")), weight)
    parts.export(tmp_path / "out")
    for name in ("config.json", "tokenizer.json"):
        assert json.loads((tmp_path / "out" / name).read_text()) == json.loads((trained / name).read_text())
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"temperature": 0.5}
    run = danlu.train(made, "run.steps=2")
    assert danlu.resume(run.path).reason == "done"


def test_a_token_without_an_embedding_is_refused(tmp_path: Path, trained: Path) -> None:
    found = sentence(DataError, recipe(tmp_path, {**GPT2, "vocab_size": 260}))
    assert "the data hold token 299, and the model's last is 259" in found
    assert found.endswith("Use the model's own tokenizer, or raise model.vocab_size.")
    made = recipe(tmp_path)
    made["model"], made["data"]["tokenizer"] = str(trained), str(trained)
    assert assemble(load_recipe(made))
    Tokenizer.train_bpe([" ".join(map(str, range(2000)))], 600).save(tmp_path / "larger")
    made["data"]["tokenizer"] = str(tmp_path / "larger")
    assert sentence(DataError, made).startswith(f"{tmp_path / 'larger'}: the data hold token ")


def test_a_token_of_the_held_out_data_counts_too(tmp_path: Path, trained: Path) -> None:
    made = recipe(tmp_path, {**GPT2, "vocab_size": 260})
    (tmp_path / "plain.txt").write_text("a b c d e f g")
    made["data"] |= {"train": str(tmp_path / "plain.txt"), "held_out": made["data"]["train"], "tokenizer": str(trained)}
    assert "the data hold token 299, and the model's last is 259" in sentence(DataError, made)


def test_a_context_longer_than_the_positions_of_a_hub_model_is_refused(tmp_path: Path) -> None:
    final = danlu.train(recipe(tmp_path, GPT2, steps=1)).path / "final"
    made = recipe(tmp_path, pack_tokens=128)
    made["model"], made["data"]["context"] = str(final), 65
    assert sentence(RecipeError, made) == "data.context (65) exceeds the model's 64 positions. Lower data.context."


def test_fp16_is_refused_with_a_reason(tmp_path: Path) -> None:
    found = sentence(UnsupportedError, recipe(tmp_path, precision="fp16"))
    assert (
        found == "run.precision: fp16 products on a CPU are hundreds of times slower than bf16. Use run.precision=bf16."
    )


def test_no_model_is_one_sentence(tmp_path: Path) -> None:
    made = recipe(tmp_path)
    made["model"] = str(tmp_path / "nowhere")
    assert sentence(CheckpointError, made).startswith(f"{tmp_path / 'nowhere'}: there is no such model directory.")


def test_prompts_are_continued_the_same_each_time(tmp_path: Path) -> None:
    parts = experiment(recipe(tmp_path, GPT2, prompts=["the furnace", ""], prompt_tokens=5))
    assert list(experiment(recipe(tmp_path)).continuations()) == []
    parts.policy.train()
    first = list(parts.continuations())
    assert [prompt for prompt, _ in first] == ["the furnace", ""]
    assert first == list(parts.continuations())
    assert parts.policy.training
    (step,) = groups(parts)
    parts.updater().gradient(step, 0)


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    made = recipe(tmp_path, GPT2, prompts=["the furnace"], prompt_tokens=100)
    with pytest.raises(DanluError):
        danlu.train(made)
    assert not (tmp_path / "run").exists()
