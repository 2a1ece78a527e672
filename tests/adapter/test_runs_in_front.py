"""Runs that train what stands in front of sequences, or behind halves of blocks: resumed, and on several ranks."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import danlu
from danlu.build import assemble
from danlu.engine.launch import launched
from danlu.errors import RecipeError
from danlu.experiment import Experiment
from danlu.reading import load_recipe
from engine.runs import GPT2, QWEN3, experiment, largest_difference, recipe, source, state
from engine.test_resume import Ended, Listener, end
from ranks import run_ranks

ADAPTERS: dict[str, dict[str, Any]] = {
    "prefix": {"name": "prefix", "length": 3, "hidden": 6},
    "prompt": {"name": "prompt", "length": 3},
    "bottleneck": {"name": "bottleneck", "size": 3},
}
MODELS = {"gpt2": {**GPT2, "attn_pdrop": 0.2}, "qwen3": {**QWEN3, "hidden_dropout": 0.1, "attention_dropout": 0.2}}
TRAINABLE = {"prefix": 5, "prompt": 1, "bottleneck": 16}
"""Parameters of two blocks."""


def tuned(folder: Path, kind: str, model: str = "qwen3", *, out: str = "run", **run: Any) -> dict[str, Any]:
    """A recipe that tunes an untrained checkpoint."""
    base = folder / model
    if not base.exists():
        parts = experiment(recipe(folder, MODELS[model]))
        parts.export(base)
        parts.close()
    made = recipe(folder, out=out, **run)
    del made["data"]["vocab_size"]
    return {**made, "model": str(base), "adapter": ADAPTERS[kind]}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_a_run_that_ends_and_goes_on_is_the_run_that_did_not(kind: str, tmp_path: Path) -> None:
    made = {out: tuned(tmp_path, kind, out=out, steps=4, checkpoint_every=2) for out in ("straight", "cut")}
    straight = danlu.train(made["straight"]).path
    with pytest.raises(Ended):
        danlu.train(made["cut"], listeners=[Listener(3, end)])
    cut = danlu.resume(tmp_path / "cut").path
    final = [load_file(run / "final" / "adapter_model.safetensors") for run in (straight, cut)]
    assert final[0].keys() == final[1].keys()
    assert all(torch.equal(tensor, final[1][name]) for name, tensor in final[0].items())
    states = [state(run, 4) for run in (straight, cut)]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    if kind == "prefix":
        assert any(name.endswith("prefix.W2") for name in states[0])
        assert set(final[0]) == {"prompt_embeddings"}


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_what_comes_out_is_read_by_us_and_trained_on(kind: str, tmp_path: Path) -> None:
    run = danlu.train(tuned(tmp_path, kind, steps=2)).path
    assert danlu.load(run / "final").generate("the furnace", max_new_tokens=4, temperature=0)
    made = {**tuned(tmp_path, kind, out="on", steps=2), "model": str(run / "final")}
    del made["adapter"]
    on = danlu.train(made).path
    before, after = (load_file(one / "final" / "adapter_model.safetensors") for one in (run, on))
    assert before.keys() == after.keys() == {"prompt_embeddings"}
    assert not torch.equal(before["prompt_embeddings"], after["prompt_embeddings"])


def train(parts: Experiment, steps: int = 4) -> list[dict[str, Any]]:
    """So many updates; what each was measured to be."""
    one, drawn, rows = parts.updater(), source(parts), []
    for step in range(steps):
        measured = one.gradient(one.groups(drawn.draw()), step)
        rows.append({**measured.metrics, "norm": one.clip(), "samples": measured.samples})
        one.move(1e-2)
    return rows


def weights(parts: Experiment) -> dict[str, Tensor]:
    held = parts.parallel.gathered(parts.policy)
    whole = dict(parts.policy.named_parameters()) if held is None else held
    trained = {name for name, p in parts.policy.named_parameters() if p.requires_grad}
    return {name: whole[name].detach().clone() for name in sorted(trained) if name in whole}


def on_ranks(every: list[tuple[dict[str, Any], tuple[str, ...]]]) -> list[tuple[Any, Any, Any]]:
    found = []
    for made, overrides in every:
        parts = assemble(load_recipe(made, overrides), launched())
        rows = train(parts)
        found.append((rows, list(parts.continuations()), weights(parts)))
        parts.close()
    return found


def same_on_two_ranks(folder: Path, models: Iterable[str], kinds: Iterable[str], ways: Iterable[Way]) -> None:
    """Updates, measurements and what is written are those of one process."""
    cases = [
        (tuned(folder, kind, model, prompts=["the furnace"], prompt_tokens=5), (*way, "optimizer.eps=1e-7"))
        for model, kind, way in itertools.product(models, kinds, ways)
        if kind != "prompt" or RING[0] not in way
    ]
    found, expected = run_ranks(on_ranks, 2, cases)[0], dict[Any, Any]()
    for (made, way), (rows, texts, held) in zip(cases, found, strict=True):
        kind = made["adapter"]["name"]
        alone = (made["model"], kind, *(one for one in way if "parallel" not in one))
        if alone not in expected:
            parts = experiment(made, *alone[2:])
            expected[alone] = train(parts), list(parts.continuations()), weights(parts)
            parts.close()
        rows_of_one, texts_of_one, weights_of_one = expected[alone]
        assert len(held) == TRAINABLE[kind]
        for row, one in zip(rows, rows_of_one, strict=True):
            assert row == pytest.approx(one, rel=1e-4), (alone, way)
        assert texts == texts_of_one
        assert held.keys() == weights_of_one.keys()
        assert largest_difference(list(held.values()), list(weights_of_one.values())) < 1e-5, (alone, way)


Way: TypeAlias = tuple[str, ...]
FEW = ("data.step_samples=1", "run.recompute=full")
RING = ("run.context_parallel=2", "run.pack_tokens=33")


def test_on_two_ranks_it_is_the_same(tmp_path: Path) -> None:
    """One of which has nothing to do, or which share each pack's rows."""
    ways = [("run.parallel=ddp", *FEW), ("run.parallel=zero3", *FEW), ("run.parallel=zero3", *RING)]
    same_on_two_ranks(tmp_path, ["qwen3"], ADAPTERS, ways)


def test_bad_input_is_a_sentence(tmp_path: Path) -> None:
    made = tuned(tmp_path, "prefix", "gpt2")
    with pytest.raises(RecipeError, match=r"data.context \(32\) exceeds the model's 24 positions, the adapter's own"):
        experiment(made, "adapter.length=40")
    made = tuned(tmp_path, "prompt")
    with pytest.raises(RecipeError, match=r"adapter.text: the text has \d+ tokens, and adapter.length is 3"):
        experiment(made, "adapter.text='nine times turned, the furnace burns low'")
    with pytest.raises(RecipeError, match=r"adapter.length"):
        experiment(made, "adapter.length=0")
    parts = experiment(made, "adapter.text=the", "adapter.length=5")
    table = parts.policy.embedding.weight
    learned = parts.policy.get_parameter("prompt.weight")
    ids = torch.tensor([*parts.data.tokenizer.encode("the")] * 5)[:5]
    assert torch.equal(learned, table[ids])
