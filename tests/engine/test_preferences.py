"""Learning from pairs as the engine does it: over ranks, beside a reference, taken up again, asked beforehand."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import danlu
import tiny
from answers import pairs
from danlu.batch import Batch
from danlu.build import assemble
from danlu.contracts import SequenceModel
from danlu.engine.frozen import Bare
from danlu.engine.launch import launched
from danlu.engine.ranks import ALONE, Ranks
from danlu.engine.record import Recorder
from danlu.errors import CheckpointError, DataError, RecipeError, UnsupportedError
from danlu.method.dpo import DPO
from danlu.reading import load_recipe
from ranks import run_ranks

from .runs import (
    GPT2,
    QWEN3,
    assert_same_run,
    experiment,
    largest_difference,
    lines,
    preferring,
    rows,
    source,
    state,
    weights,
)
from .test_parallel import FLOOR, train
from .test_parallel import weights as weights_of

TOLERANCE = 5e-6
"""Of weights that have moved a thousand times as far."""
OTHER = {**QWEN3, "initializer_range": 0.3}
"""A reference that is not the policy, so that ratios are not all 1."""
BOTH = {"policy": {**QWEN3, "tie_word_embeddings": False}, "reference": OTHER}
METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dpo": ({"name": "dpo", "sft_weight": 0.1}, BOTH),
    "kto": ({"name": "kto", "beta": 0.02}, BOTH),
    "reward": ({"name": "reward", "centring": 0.01}, OTHER),
}
STEPS = 6


def learned(made: dict[str, Any], overrides: tuple[str, ...], ranks: Ranks = ALONE) -> tuple[Any, ...]:
    """What is measured before, during and after some updates, and the weights then."""
    parts = assemble(load_recipe(made, [FLOOR, *overrides]), ranks)
    before = parts.updater().measure(parts.held_out())
    trained = train(parts, STEPS)
    after = parts.updater().measure(parts.held_out())
    parts.close()
    return before, trained, after, weights_of(parts)


def learned_on_ranks(each: list[tuple[dict[str, Any], tuple[str, ...]]]) -> list[tuple[Any, ...]]:
    return [learned(made, overrides, launched()) for made, overrides in each]


FEW = "data.step_samples=1"
WAYS: list[tuple[str, ...]] = [
    ("run.parallel=ddp",),
    ("run.parallel=zero3",),
    ("run.parallel=zero2", FEW),
    ("run.parallel=ddp", "run.context_parallel=2"),
    ("run.parallel=zero3", "run.context_parallel=2"),
]


def test_ranks_are_one_process(tmp_path: Path) -> None:
    """Whether the weights are whole on each, shared out, or the rows of each pack are."""
    made = {name: preferring(tmp_path, *METHODS[name]) for name in METHODS}
    cases = [(name, way) for name in METHODS for way in WAYS]
    (found, _) = run_ranks(learned_on_ranks, 2, [(made[name], way) for name, way in cases])
    alone = {(name, few): learned(made[name], few) for name in METHODS for few in ((), (FEW,))}
    for (name, way), (first, trained, last, held) in zip(cases, found, strict=True):
        before, expected, after, ends = alone[name, (FEW,) if FEW in way else ()]
        where = f"{name} {way}"
        assert first == pytest.approx(before, rel=1e-5, abs=1e-6), where
        assert last == pytest.approx(after, rel=1e-4, abs=1e-5), where
        for row, one in zip(trained, expected, strict=True):
            assert row == pytest.approx(one, rel=1e-4, abs=1e-5), where
        assert largest_difference(list(held.values()), list(ends.values())) < TOLERANCE, where


def test_kto_moves_by_a_divergence_of_the_whole_update(tmp_path: Path) -> None:
    """Its estimate is positive here, and the same in one pack as in many; measured over all held-out data at once."""
    made = preferring(tmp_path, {"name": "kto", "beta": 0.02}, BOTH)
    parts = experiment(made, "data.step_samples=8", "run.pack_tokens=2000")
    drawn = source(parts).draw()
    found = {}
    for pack_tokens in (128, 2000):
        parts = experiment(made, "data.step_samples=8", f"run.pack_tokens={pack_tokens}")
        one = parts.updater()
        found[pack_tokens] = one.gradient(one.groups(drawn), 0), one.measure(parts.held_out())
    (few, held), (many, also_held) = found[2000], found[128]
    assert (few.packs, many.packs > 1) == (1, True)
    for metrics in (few.metrics, held):
        assert metrics["kl"] > 0.1
    assert many.metrics == pytest.approx(few.metrics, rel=1e-4)
    assert also_held == pytest.approx(held, rel=1e-4)
    assert few.flops == many.flops
    plain = experiment(preferring(tmp_path, "dpo", made["model"]), "data.step_samples=8").updater()
    assert (
        few.flops > plain.gradient(plain.groups(drawn), 0).flops
    )  # which asks both models once more without a gradient


def test_operations_of_the_reference_are_counted_once(tmp_path: Path) -> None:
    """Forward alone: three times the policy's and one time its own."""
    made = preferring(tmp_path, "dpo")
    parts = experiment(made)
    one, drawn = parts.updater(), source(parts).draw()
    groups = one.groups(drawn)
    alone = sum(parts.policy.flops(batch.packed, len(batch.targets)) for batch in one.packs(groups))
    assert one.gradient(groups, 0).flops == 4 * alone
    free = experiment(made, "method.reference_free=true").updater()
    assert free.gradient(groups, 0).flops == 3 * alone


def test_the_reference_is_the_policys_start_and_stays_so(tmp_path: Path) -> None:
    """Its weights are those at the beginning after every update, and are in no checkpoint."""
    run = danlu.train(preferring(tmp_path, "dpo", steps=STEPS, eval_every=2))
    measured = [row for row in rows(run.path) if "held_out_loss" in row]
    assert measured[0]["held_out_loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert measured[-1]["held_out_loss"] < measured[0]["held_out_loss"] - 1e-3
    assert {name.split("/")[0] for name in state(run.path, STEPS)} == {"model", "optimizer"}
    names = [name for name in state(run.path, STEPS) if name.startswith("model/")]
    parts = experiment(preferring(tmp_path, "dpo", out="again"))
    assert len(names) == len(list(parts.policy.parameters()))
    reference = parts.asked["reference"]
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert not reference.training
    start = [parameter.detach().clone() for parameter in reference.parameters()]
    one, drawn = parts.updater(), source(parts)
    for step in range(3):
        one.gradient(one.groups(drawn.draw()), step)
        one.move(1e-2)
    assert largest_difference(list(reference.parameters()), start) == 0
    assert largest_difference(list(parts.policy.parameters()), start) > 1e-3


@pytest.mark.parametrize(
    ("method", "model"), [("dpo", QWEN3), ("kto", BOTH), ({"name": "dpo", "reference": "precomputed"}, GPT2)]
)
def test_resuming_is_exact_beside_a_reference(tmp_path: Path, method: Any, model: dict[str, Any]) -> None:
    """The reference is had anew from where it came, not from what the policy has become."""
    whole = preferring(tmp_path, method, model, out="whole", steps=STEPS, checkpoint_every=2, keep_checkpoints=3)
    parts = preferring(tmp_path, method, model, out="parts", steps=STEPS, checkpoint_every=2, keep_checkpoints=3)
    danlu.train(whole)
    danlu.train(parts)
    danlu.resume(tmp_path / "parts", step=2)
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_another_reference_is_another_run(tmp_path: Path) -> None:
    trained = danlu.train(preferring(tmp_path, {"name": "orpo"}, GPT2, out="start", steps=1)).path / "final"
    other = danlu.train(preferring(tmp_path, {"name": "orpo"}, GPT2, out="other", steps=2)).path / "final"
    made = preferring(tmp_path, "dpo", {"policy": str(trained), "reference": str(trained)}, steps=STEPS)
    made["data"].pop("vocab_size")
    run = danlu.train(made, "run.checkpoint_every=3").path
    with pytest.raises(RecipeError, match="cannot be changed in a run that has begun: model.reference.bridge"):
        danlu.resume(run, "model.reference.bridge=true")
    with pytest.raises(CheckpointError, match="the reference has other weights than when the run began"):
        danlu.resume(run, f"model.reference.path={other}", step=3)
    named = other / "tokenizer.json"
    tokenizer = json.loads(named.read_text())
    ids = tokenizer["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    named.write_text(json.dumps(tokenizer))
    with pytest.raises(RecipeError, match="the reference's tokenizer is another than the policy's"):
        danlu.train(made, f"model.reference={other}", f"run.out={tmp_path / 'no'}")
    moved = trained.rename(tmp_path / "moved")
    danlu.resume(run, f"model.reference.path={moved}", f"model.policy.path={moved}", step=3)
    notes = [event["message"] for event in lines(run / "events.jsonl") if event["kind"] == "note"]
    assert any("model.reference.path is" in note and "its weights are to be those of then" in note for note in notes)


def precomputed(made: dict[str, Any], out: str) -> tuple[Any, list[str]]:
    run = danlu.train(made, f"run.out={out}", "method.reference=precomputed")
    return run.path, [event["message"] for event in lines(run.path / "events.jsonl") if event["kind"] == "note"]


@pytest.mark.parametrize("model", [QWEN3, BOTH], ids=["the start", "another"])
def test_a_reference_asked_beforehand_says_what_it_says_beside(tmp_path: Path, model: dict[str, Any]) -> None:
    made = preferring(tmp_path, "dpo", model, steps=STEPS, eval_every=3)
    beside = danlu.train(made, f"run.out={tmp_path / 'beside'}").path
    first, notes = precomputed(made, str(tmp_path / "first"))
    assert any("the reference's log-probabilities of 3" in note and " took " in note for note in notes)
    for row, expected in zip(rows(first), rows(beside), strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-6)
    again, notes = precomputed(made, str(tmp_path / "again"))
    assert any("were kept in the data's cache" in note for note in notes)
    assert_same_run(again, first)
    other = {**made, "model": {"policy": QWEN3, "reference": {**OTHER, "initializer_range": 0.1}}}
    _, notes = precomputed(other, str(tmp_path / "other"))
    assert any(" took " in note for note in notes)  # nothing kept is of these weights


def test_what_is_precomputed_is_not_kept_in_memory(tmp_path: Path) -> None:
    parts = experiment(preferring(tmp_path, {"name": "dpo", "reference": "precomputed"}, BOTH))
    assert set(parts.asked) == {"reference"}
    loop = parts.loop(tmp_path / "run", Recorder(tmp_path / "run", [], silent=True), lambda: None)
    assert not parts.asked
    assert set(loop.updater.models) == {"policy"}
    drawn = loop.source.draw()
    assert all(len(sample.values["reference"]) == 2 for sample in drawn)
    assert all(len(sample.values["reference"]) == 2 for sample in loop.held_out())  # type: ignore[misc]


def precomputed_on_ranks(made: dict[str, Any], cache: str) -> list[Any]:
    found = []
    for overrides in (["run.parallel=zero3"], ["run.parallel=ddp", "run.context_parallel=2"]):
        made["data"]["cache"] = f"{cache}{len(found)}"
        parts = assemble(load_recipe(made, overrides), launched())
        folder = Path(made["run"]["out"])
        loop = parts.loop(folder, Recorder(folder, [], silent=True), lambda: None)
        found.append({sample.id: sample.values["reference"] for sample in loop.source.draw()})
        parts.close()
    return found


def test_ranks_precompute_together(tmp_path: Path) -> None:
    made = preferring(tmp_path, {"name": "dpo", "reference": "precomputed"}, BOTH)
    parts = experiment(made)
    loop = parts.loop(tmp_path / "run", Recorder(tmp_path / "run", [], silent=True), lambda: None)
    expected = {sample.id: sample.values["reference"] for sample in loop.source.draw()}
    for rank in run_ranks(precomputed_on_ranks, 2, made, str(tmp_path / "cache-of-")):
        for found in rank:
            assert found.keys() == expected.keys()
            for sample, values in found.items():
                assert values == pytest.approx(expected[sample], rel=1e-5)


def test_a_reward_model_is_what_comes_out(tmp_path: Path) -> None:
    """A checkpoint of a language model becomes a scorer; it is reloaded, trained on, and generates nothing."""
    start = danlu.train(preferring(tmp_path, {"name": "orpo"}, GPT2, out="start", steps=1)).path / "final"
    made = preferring(tmp_path, "reward", steps=STEPS)
    made["model"] = str(start)
    made["data"].pop("vocab_size")
    run = danlu.train(made)
    config = json.loads((run.path / "final" / "config.json").read_text())
    assert config["architectures"] == ["GPT2ForSequenceClassification"]
    assert "score.weight" in weights(run.path)
    measured = [row for row in rows(run.path) if "held_out_loss" in row]
    assert measured[-1]["held_out_loss"] < measured[0]["held_out_loss"]
    assert 0 <= measured[-1]["held_out_calibration_error"] <= 1
    assert not any("calibration" in name for name in rows(run.path)[1] if not name.startswith("held_out"))
    with pytest.raises(UnsupportedError, match="scores sequences, and predicts no tokens"):
        danlu.load(run.path / "final").generate(["a"])
    more = danlu.train({**made, "model": str(run.path / "final")}, f"run.out={tmp_path / 'more'}")
    assert rows(more.path)[0]["held_out_loss"] == pytest.approx(measured[-1]["held_out_loss"], rel=1e-5)
    with pytest.raises(RecipeError, match="the model scores sequences, and dpo learns to predict tokens"):
        danlu.train({**made, "method": "dpo", "model": str(run.path / "final")}, f"run.out={tmp_path / 'no'}")
    with pytest.raises(UnsupportedError, match="scores sequences"):
        danlu.train(made, f"run.out={tmp_path / 'none'}", "run.prompts=[a]")


@pytest.mark.parametrize(("token", "kept"), [("<|endoftext|>", False), ("!", True), (None, False)])
def test_a_score_is_read_behind_the_last_token_by_others_too(tmp_path: Path, token: str | None, kept: bool) -> None:
    """What a reward model is padded with is none of what answers end with, or left open."""
    start = danlu.train(preferring(tmp_path, {"name": "orpo"}, GPT2, out="start", steps=1)).path / "final"
    file = start / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "pad_token": token}))
    config = json.loads((start / "config.json").read_text())
    (start / "config.json").write_text(json.dumps({**config, "pad_token_id": config["eos_token_id"]}))
    made = preferring(tmp_path, "reward", steps=1)
    made["model"] = str(start)
    made["data"].pop("vocab_size")
    pad = json.loads((danlu.train(made).path / "final" / "config.json").read_text())["pad_token_id"]
    assert pad != config["eos_token_id"]
    assert (pad is not None) == kept


REFUSED = [
    ("sft", BOTH, RecipeError, "model.reference is given, and method sft as it is set here asks for none"),
    (
        {"name": "dpo", "reference_free": True},
        BOTH,
        RecipeError,
        "model.reference is given, and method dpo as it is set here asks for none",
    ),
    (
        "dpo",
        {"policy": QWEN3, "reference": {**QWEN3, "vocab_size": 999}},
        RecipeError,
        "model.reference: the reference has 999 tokens, and the policy 300. Give one with the policy's tokenizer",
    ),
    (
        "dpo",
        {"policy": QWEN3, "reference": {**GPT2, "n_positions": 63, "vocab_size": 300}},
        RecipeError,
        r"model.reference: data.context \(64\) exceeds the reference's 63 positions",
    ),
]


@pytest.mark.parametrize(("method", "model", "kind", "words"), REFUSED, ids=[case[3][:40] for case in REFUSED])
def test_roles_that_do_not_fit_are_refused(
    tmp_path: Path, method: Any, model: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        experiment(preferring(tmp_path, method, model))
    assert not (tmp_path / "run").exists()


def test_judged_answers_are_no_pairs(tmp_path: Path) -> None:
    made = preferring(tmp_path, "dpo")
    file = tmp_path / "pairs.jsonl"
    judged = [{"prompt": f"a {i}", "completion": f" b {i}", "label": i % 2 == 0} for i in range(20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in judged))
    with pytest.raises(DataError, match=r"pairs.jsonl:\d+: dpo learns from pairs, and this prompt has 1 answer"):
        danlu.train(made)
    run = danlu.train({**made, "method": "kto"}, f"run.out={tmp_path / 'kto'}", "run.steps=2")
    assert {"reward_desirable", "reward_undesirable", "kl", "margin"} <= rows(run.path)[-1].keys()


class Worn:
    """An adapter that doubles what a layer gives; off, it does not."""

    def __init__(self, model: SequenceModel) -> None:
        self.on = True
        next(iter(model.blocks)).register_forward_hook(lambda _, __, out: out * 2 if self.on else out)

    @contextmanager
    def off(self) -> Iterator[None]:
        self.on = False
        yield
        self.on = True


def test_an_adapter_switched_off_is_the_reference() -> None:
    """By the same model as without one, in every sum and gradient."""
    plain, model = tiny.model("llama"), tiny.model("llama")
    model.adapted = Worn(model)
    method = DPO()
    batch = Batch.join([method.group(sample) for sample in pairs([(3, 4, 2), (2, 2, 5)])])
    found = method.loss({"policy": model, "reference": Bare(model)}, batch)
    expected = method.loss({"policy": model, "reference": plain}, batch)
    for kind in ("losses", "metrics"):
        for name, value in getattr(expected, kind).items():
            torch.testing.assert_close(getattr(found, kind)[name], value, rtol=1e-12, atol=1e-12)
    assert float(found.losses["dpo"].detach()) != pytest.approx(2 * math.log(2), rel=1e-3)
    bare = Bare(model)
    assert not list(bare.parameters())
    assert bare.train().flops(batch.packed, 3) == model.flops(batch.packed, 3)
    assert bare.config is model.config


@pytest.mark.parametrize("adapter", [{"name": "freeze", "layers": [-1]}, {"name": "lora", "also_train": "ln_f"}])
def test_what_trains_the_models_own_weights_has_a_reference_beside(tmp_path: Path, adapter: dict[str, Any]) -> None:
    """Since it cannot be switched off."""
    start = danlu.train(preferring(tmp_path, {"name": "orpo"}, GPT2, out="start", steps=1)).path / "final"
    made = preferring(tmp_path, "dpo", steps=STEPS)
    made["model"] = str(start)
    made["data"].pop("vocab_size")
    made["adapter"] = adapter
    parts = experiment(made)
    assert not isinstance(parts.asked["reference"], Bare)
    measured = [row["held_out_loss"] for row in rows(danlu.train(made).path) if "held_out_loss" in row]
    assert measured[0] == pytest.approx(math.log(2), rel=1e-6)
    assert measured[-1] < measured[0]


@pytest.mark.parametrize("method", ["reward", "dpo"])
def test_adapters_learn_from_pairs(tmp_path: Path, method: str) -> None:
    """Beside a base that is the reference; a reward's head is new, and is trained and saved with the adapter."""
    start = danlu.train(preferring(tmp_path, {"name": "orpo"}, GPT2, out="start", steps=1)).path / "final"
    made = preferring(tmp_path, method, steps=STEPS)
    made["model"] = str(start)
    made["data"].pop("vocab_size")
    made["adapter"] = {"name": "lora", "rank": 2}
    run = danlu.train(made)
    measured = [row for row in rows(run.path) if "held_out_loss" in row]
    assert measured[-1]["held_out_loss"] < measured[0]["held_out_loss"]
    config = json.loads((run.path / "final" / "adapter_config.json").read_text())
    assert config["task_type"] == ("SEQ_CLS" if method == "reward" else "CAUSAL_LM")
    if method == "dpo":
        assert measured[0]["held_out_loss"] == pytest.approx(math.log(2), rel=1e-6)
    again = {**made, "model": str(run.path / "final"), "adapter": None}
    more = danlu.train({**again, "method": {"name": method}}, f"run.out={tmp_path / 'more'}", "run.steps=1")
    if method == "reward":
        assert rows(more.path)[0]["held_out_loss"] == pytest.approx(measured[-1]["held_out_loss"], rel=1e-5)
    else:  # whose reference is the base still, without what was learned
        assert rows(more.path)[0]["held_out_loss"] == pytest.approx(measured[-1]["held_out_loss"], rel=1e-4)
