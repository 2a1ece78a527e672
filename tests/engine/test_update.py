from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from contracts.test_methods import CASES, FIELDS
from danlu.batch import Batch
from danlu.engine.update import Updater
from danlu.errors import RunError
from danlu.experiment import Experiment
from danlu.parts.readout import Logits
from danlu.registry import lookup

from .runs import GPT2, QWEN3, experiment, groups, largest_difference, preferring, recipe

MODELS: dict[str, dict[str, Any]] = {"gpt2": GPT2, "qwen3": {**QWEN3, "hidden_dropout": 0.2, "attention_dropout": 0.1}}
TOLERANCE = 1e-6
FLOOR = "optimizer.eps=1e-7"
"""Under Adam's second average: a gradient that is 0 but for rounding would else be blown up towards the learning rate."""


LEARNED = [
    (model, *case)
    for number, case in enumerate(CASES)
    for turn, model in enumerate(MODELS)
    if lookup("method", case[0]).learns_from == "sequence" or turn == number % 2
]
"""Each method with one model, and those that most are trained by with all."""


@pytest.fixture(scope="module", params=LEARNED, ids=str)
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    model, name, number = request.param
    method, folder = {"name": name, **FIELDS[name][number]}, tmp_path_factory.mktemp("update")
    if lookup("method", name).learns_from == "answers":
        return experiment(preferring(folder, method, MODELS[model]), "data.step_samples=8", FLOOR)
    return experiment({**recipe(folder, MODELS[model]), "method": method}, "data.step_samples=12", FLOOR)


def updater(parts: Experiment, pack_tokens: int) -> Updater:
    return replace(parts.updater(), pack_tokens=pack_tokens)


def gradient(parts: Experiment, step: list[Batch], pack_tokens: int, number: int = 3) -> tuple[list[Tensor], Any]:
    measured = updater(parts, pack_tokens).gradient(step, number)
    return [p.grad.clone() for p in parts.policy.parameters() if p.grad is not None], measured


def test_the_gradient_is_the_same_for_any_packs_in_any_order(parts: Experiment) -> None:
    (step,) = groups(parts)
    longest = max(map(len, step))
    expected, measured = gradient(parts, step, sum(map(len, step)))
    assert measured.packs == 1
    other, _ = gradient(parts, step, sum(map(len, step)), number=4)
    assert largest_difference(other, expected) > 1e3 * TOLERANCE  # dropout is on, and another step has another

    @settings(max_examples=12)
    @given(st.permutations(range(len(step))), st.integers(longest, 4 * longest))
    def check(order: list[int], pack_tokens: int) -> None:
        found, measured_now = gradient(parts, [step[i] for i in order], pack_tokens)
        assert measured_now.packs > 1
        assert len(found) == len(expected)
        assert largest_difference(found, expected) < TOLERANCE
        assert measured_now.metrics == pytest.approx(measured.metrics, rel=1e-5)
        assert measured_now.flops == measured.flops
        assert (measured_now.samples, measured_now.tokens) == (measured.samples, measured.tokens)

    check()


def test_parameters_after_some_steps_are_the_same_for_any_packs(parts: Experiment) -> None:
    before = {name: p.detach().clone() for name, p in parts.policy.named_parameters()}
    steps = groups(parts, 4)
    ends = []
    longest = max(max(map(len, step)) for step in steps)
    for pack_tokens, turn in ((10_000, 1), (longest, -1), (2 * longest + 1, 1)):
        parts.policy.load_state_dict(before, strict=False)
        one = updater(parts, pack_tokens)
        for number, step in enumerate(steps):
            one.gradient(step[::turn], number)
            one.clip()
            one.move(3e-4)
        ends.append([p.detach().clone() for p in parts.policy.parameters()])
    parts.policy.load_state_dict(before, strict=False)
    moved = [(a - b).abs() for a, b in zip(ends[0], before.values(), strict=True)]
    assert min(float(m.max()) for m in moved) > 10 * TOLERANCE
    for end in ends[1:]:
        assert largest_difference(end, ends[0]) < TOLERANCE


def test_a_token_counts_the_same_in_an_uneven_pack(tmp_path: Path) -> None:
    """Against one document at a time: the sum of all cross-entropies over the number of all targets."""
    parts = experiment(recipe(tmp_path, QWEN3), "data.step_samples=9")
    (step,) = groups(parts)
    policy = parts.policy
    lengths = sorted(len(group) for group in step)
    assert lengths[0] < lengths[-1] / 3
    total = torch.zeros(())
    correct = 0
    for group in step:
        (logits,) = policy(group.packed, [Logits(torch.arange(len(group)))])
        total = total + F.cross_entropy(logits, group.targets.tokens, reduction="sum")
        correct += int((logits.argmax(1) == group.targets.tokens).sum())
    targets = sum(len(group.targets) for group in step)
    expected = torch.autograd.grad(total / targets, list(policy.parameters()))
    found, measured = gradient(parts, step, 40)
    assert measured.packs > 2
    assert largest_difference(found, expected) < TOLERANCE
    nll = float(total.detach()) / targets
    assert measured.metrics["loss"] == pytest.approx(nll, rel=1e-6)
    assert measured.metrics["accuracy"] == correct / targets
    assert measured.metrics["perplexity"] == pytest.approx(math.exp(nll), rel=1e-5)
    text = sum(group.num_bytes for group in step)
    assert measured.metrics["bits_per_byte"] == pytest.approx(float(total.detach()) / math.log(2) / text, rel=1e-6)


def test_held_out_metrics_are_those_of_a_plain_loop_over_documents(tmp_path: Path) -> None:
    parts = experiment(recipe(tmp_path, GPT2))
    corpus, policy = parts.data.held_out, parts.policy.eval()
    assert corpus is not None
    nll = correct = targets = text = 0.0
    for i in range(len(corpus)):
        sample = corpus[i]
        group = parts.recipe.method.group(sample)
        with torch.no_grad():
            (logits,) = policy(group.packed, [Logits(torch.arange(len(group)))])
        wanted = torch.from_numpy(sample.tokens[1:])
        nll += float(F.cross_entropy(logits.double(), wanted, reduction="sum"))
        correct += int((logits.argmax(1) == wanted).sum())
        targets += len(wanted)
        text += sample.num_bytes
    assert targets == int(corpus.lengths.sum())
    for pack_tokens in (32, 64, 10_000):
        measured = updater(parts, pack_tokens).measure(parts.held_out())
        assert measured["loss"] == pytest.approx(nll / targets, rel=1e-6)
        assert measured["accuracy"] == correct / targets
        assert measured["bits_per_byte"] == pytest.approx(nll / math.log(2) / text, rel=1e-6)
        assert measured["perplexity"] == pytest.approx(math.exp(nll / targets), rel=1e-5)


def test_what_regularises_training_is_not_measured(tmp_path: Path) -> None:
    made = recipe(tmp_path, MODELS["gpt2"])
    plain = experiment(made)
    made["method"] = {"name": "next_token", "label_smoothing": 0.3, "z_loss": 0.1}
    regularised = experiment(made)
    assert updater(regularised, 64).measure(regularised.held_out()) == updater(plain, 64).measure(plain.held_out())
    (step,) = groups(plain)
    assert gradient(regularised, step, 64)[1].metrics["loss"] > gradient(plain, step, 64)[1].metrics["loss"] + 0.1


def test_measuring_leaves_no_trace(tmp_path: Path) -> None:
    parts = experiment(recipe(tmp_path, GPT2))
    (step,) = groups(parts)
    before = [p.detach().clone() for p in parts.policy.parameters()]
    first, _ = gradient(parts, step, 64)
    updater(parts, 64).measure(parts.held_out())
    second, _ = gradient(parts, step, 64)
    assert largest_difference(first, second) == 0
    assert largest_difference(before, list(parts.policy.parameters())) == 0


def test_a_step_without_targets_is_refused(tmp_path: Path) -> None:
    parts = experiment(recipe(tmp_path))
    (step,) = groups(parts)
    idle = [replace(group, targets=replace(group.targets, weights=0 * group.targets.weights)) for group in step]
    with pytest.raises(
        RunError, match=r"step 8 has nothing to learn from: its count of 'nll' is 0 on samples .*jsonl:"
    ):
        updater(parts, 64).gradient(idle, 7)
    assert updater(parts, 64).gradient([*idle, *step], 7).metrics["loss"] > 0


@pytest.mark.parametrize("clip_norm", [None, 0.25, 1e6])
def test_clipping_scales_the_whole_gradient_to_its_longest(tmp_path: Path, clip_norm: float | None) -> None:
    parts = experiment(recipe(tmp_path))
    (step,) = groups(parts)
    one = replace(parts.updater(), clip_norm=clip_norm)
    one.gradient(step, 0)
    gradients = [p.grad for p in parts.policy.parameters() if p.grad is not None]
    before = torch.cat([g.flatten() for g in gradients]).double()
    norm = float(before.norm())
    assert 0.25 < norm < 1e6
    assert one.clip() == pytest.approx(norm, rel=1e-6)
    after = torch.cat([g.flatten() for g in gradients]).double()
    scale = 0.25 / norm if clip_norm == 0.25 else 1.0
    torch.testing.assert_close(after, before * scale, rtol=1e-5, atol=0)


def test_bf16_computes_so_and_keeps_everything_else_in_fp32(tmp_path: Path) -> None:
    seen = []
    losses = {}
    for precision in ("fp32", "bf16"):
        parts = experiment(recipe(tmp_path, QWEN3), f"run.precision={precision}")
        steps = groups(parts, 4)
        one = parts.updater()
        hook = parts.policy.layers[0].mlp.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
        losses[precision] = []
        for number, step in enumerate(steps):
            losses[precision].append(one.gradient(step, number).metrics["loss"])
            assert {p.grad.dtype for p in parts.policy.parameters()} == {torch.float32}
            one.move(1e-3)
        hook.remove()
        assert set(seen) == {torch.float32 if precision == "fp32" else torch.bfloat16}
        seen.clear()
        assert {p.dtype for p in parts.policy.parameters()} == {torch.float32}
        averages = [v for state in one.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
        assert len(averages) == 3 * len(list(parts.policy.parameters()))
        assert {average.dtype for average in averages} == {torch.float32}
    assert losses["bf16"] == pytest.approx(losses["fp32"], abs=2e-2)
    assert losses["bf16"] != losses["fp32"]
    assert losses["fp32"][-1] < losses["fp32"][0]
