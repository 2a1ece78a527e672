"""Answers as a forest: what is predicted from where, that sharing a prompt changes nothing, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tiny
from answers import Judged, pairs
from contracts.test_methods import CASES, made
from danlu.batch import Batch
from danlu.contracts import SequenceMethod
from danlu.errors import DataError
from danlu.method.dpo import DPO
from danlu.method.kto import KTO
from danlu.method.orpo import ORPO
from danlu.method.preference import sequences_of
from danlu.method.reward import BINS, Reward
from danlu.method.simpo import SimPO
from danlu.packed import Packed
from danlu.parts.readout import Logits, Values
from danlu.registry import lookup
from strategies import keyed

PREFERENCES = [case for case in CASES if lookup("method", case[0]).learns_from == "answers"]
LENGTHS = [(3, 4, 2), (1, 1, 5), (6, 3, 3)]


def models(method: SequenceMethod, name: str = "llama") -> dict[str, Any]:
    head = {"num_labels": 1} if method.scoring else {}
    return {role: tiny.model(name, seed=seed, **head) for seed, role in enumerate((method.roles[0], *method.asks))}


def learned(method: SequenceMethod, roles: dict[str, Any], batch: Batch) -> dict[str, Tensor]:
    """Every sum, and the gradient of the losses' sum by every weight."""
    outcome = method.loss(roles, batch)
    names, parameters = zip(*roles["policy"].named_parameters(), strict=True)
    gradients = torch.autograd.grad(torch.stack(list(outcome.losses.values())).sum(), parameters)
    sums = {**{f"loss {n}": v.detach() for n, v in outcome.losses.items()}, **outcome.metrics}
    return {**sums, **dict(zip(names, gradients, strict=True))}


def repeated(method: SequenceMethod) -> SequenceMethod:
    return method.model_copy(update={"share_prompt": not method.share_prompt})  # type: ignore[attr-defined]


@pytest.mark.parametrize(("name", "number"), PREFERENCES)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_shared_prompt_is_a_repeated_one(name: str, number: int, architecture: str) -> None:
    """In every sum and gradient, also while the model drops, since what is dropped goes by a sample's places."""
    method = made(name, number)
    roles = models(method, architecture)
    samples = method.matched(pairs(LENGTHS))

    def batch(method: SequenceMethod) -> Batch:
        joined = Batch.join([method.group(sample) for sample in samples])
        beside = joined.beside and replace(joined.beside, packed=keyed(joined.beside.packed))
        return replace(joined, packed=keyed(joined.packed), beside=beside, estimates={"kl": 0.3})

    for training in (True, False):
        roles["policy"].train(training)
        found, expected = (learned(each, roles, batch(each)) for each in (method, repeated(method)))
        assert found.keys() == expected.keys()
        for key, value in found.items():
            torch.testing.assert_close(value, expected[key], rtol=1e-10, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}")
    assert len(batch(method)) != len(batch(repeated(method)))


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3), st.data())
def test_each_answer_is_predicted_behind_its_prompt(lengths: list[tuple[int, int, int]], data: st.DataObject) -> None:
    """Each target against the logits of prompt and answer as one plain sequence."""
    share = data.draw(st.booleans())
    method, model = DPO(share_prompt=share, reference_free=True), tiny.model("llama").eval()
    samples = []
    for sample in pairs(lengths):
        weights = [
            np.array(data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=len(a), max_size=len(a))))
            for a in sample.answers
        ]
        samples.append(replace(sample, weights=weights if data.draw(st.booleans()) else None))
    batch = Batch.join([method.group(sample) for sample in samples])
    sums = sequences_of(batch).sums(method.log_probs(model, batch))
    expected, targets = [], 0
    for sample in samples:
        for number, answer in enumerate(sample.answers):
            weights = np.ones(len(answer)) if sample.weights is None else sample.weights[number]
            path = torch.as_tensor(np.concatenate([sample.prompt, answer]))
            (logits,) = model(Packed.tree([path]), [Logits(torch.arange(len(path)))])
            rows = torch.arange(len(sample.prompt) - 1, len(path) - 1)
            each = logits.log_softmax(1)[rows, path[rows + 1]]
            expected.append((each * torch.as_tensor(weights)).sum())
            targets += int((weights > 0).sum())
    torch.testing.assert_close(sums, torch.stack(expected), rtol=1e-9, atol=1e-9)
    assert len(batch.targets) == targets
    assert len(batch.origin) == len(samples)
    if share:  # no row that nothing which is learned sees
        most = sum(len(s.prompt) + sum(len(a) - 1 for a in s.answers) for s in samples)
        assert len(batch) <= most


@pytest.mark.parametrize("loss_type", ["sigmoid", "robust"])
def test_dpo_begins_at_the_logarithm_of_two(loss_type: str) -> None:
    """Whatever the pairs, when the policy is its reference; also of a model that drops while training."""
    method, model = DPO(loss_type=loss_type, label_smoothing=0.2), tiny.model("gpt2")
    batch = Batch.join([method.group(sample) for sample in pairs(LENGTHS)])
    batch = replace(batch, packed=keyed(batch.packed))
    for training in (True, False):
        outcome = method.loss({"policy": model.train(training), "reference": tiny.model("gpt2")}, batch)
        assert float(outcome.losses["dpo"].detach()) / 3 == pytest.approx(math.log(2), rel=1e-12)
        assert float(outcome.metrics["margin"]) == 0


def test_the_reference_is_asked_without_dropping_and_without_a_gradient() -> None:
    method = DPO(dropout=True)
    roles = {"policy": tiny.model("llama"), "reference": tiny.model("llama", seed=1)}
    batch = Batch.join([method.group(sample) for sample in pairs(LENGTHS)])
    dropping = replace(batch, packed=keyed(batch.packed))
    plain = method.loss(roles, batch)
    rewards = float(plain.metrics["log_prob_chosen"]) - float(plain.metrics["reward_chosen"]) / method.beta
    other = method.loss(roles, dropping)
    again = float(other.metrics["log_prob_chosen"]) - float(other.metrics["reward_chosen"]) / method.beta
    assert again == pytest.approx(rewards, rel=1e-9)  # the reference's sums
    assert float(other.metrics["log_prob_chosen"]) != pytest.approx(float(plain.metrics["log_prob_chosen"]), rel=1e-3)
    torch.stack(list(other.losses.values())).sum().backward()
    assert all(parameter.grad is None for parameter in roles["reference"].parameters())


def test_what_the_reference_says_may_come_with_the_sample() -> None:
    method, roles = DPO(), {"policy": tiny.model("llama"), "reference": tiny.model("llama", seed=1)}
    samples = pairs(LENGTHS)
    batch = Batch.join([method.group(sample) for sample in samples])
    asked = method.loss(roles, batch)
    sums = sequences_of(batch).sums(method.log_probs(roles["reference"], batch)).detach()
    told = [replace(sample, values={"reference": sums[2 * i : 2 * i + 2].tolist()}) for i, sample in enumerate(samples)]
    recalled = method.loss({"policy": roles["policy"]}, Batch.join([method.group(sample) for sample in told]))
    torch.testing.assert_close(recalled.losses["dpo"], asked.losses["dpo"], rtol=1e-5, atol=0)  # of float32


def test_a_pair_is_two_judged_answers_to_kto() -> None:
    """With the same gradient as two samples of one answer each."""
    method, roles = KTO(), models(KTO())
    sample = pairs([(3, 4, 2)])[0]
    apart = [
        replace(sample, answers=[answer], values={"desirable": [good]})
        for answer, good in zip(sample.answers, (1, 0), strict=True)
    ]
    together = learned(method, roles, method.group(sample))
    alone = learned(method, roles, Batch.join([method.group(each) for each in apart]))
    for key, value in together.items():
        torch.testing.assert_close(value, alone[key], rtol=1e-10, atol=1e-10)
    assert method.counts(method.group(sample))["kto"] == 2


def test_kto_matches_each_prompt_with_the_answers_before_it() -> None:
    samples = pairs([(2, 4, 3), (3, 1, 6), (5, 2, 2)])
    matched = KTO().matched(samples)
    longest = 9
    for number, one in enumerate(matched):
        assert one.own is samples[number]
        before = samples[number - 1].answers
        room = longest - len(samples[number].prompt)
        assert [other.tokens.tolist() for other in one.others] == [answer[:room].tolist() for answer in before]
        group = KTO().group(one)
        assert group.beside is not None
        assert sequences_of(group.beside).num == 2
        assert torch.equal(group.beside.packed.tokens[: len(one.own.prompt)], torch.as_tensor(one.own.prompt))
        assert KTO().size(one) >= len(group)
    alone = KTO().matched(samples[:1])
    assert alone == samples[:1]
    assert KTO().group(alone[0]).beside is None
    assert KTO().counts(KTO().group(alone[0]))["kl"] == 0


def test_scores_are_read_at_each_answers_last_token() -> None:
    method, model = Reward(), tiny.model("qwen3", num_labels=1).eval()
    samples = pairs(LENGTHS)
    for share in (True, False):
        batch = Batch.join([Reward(share_prompt=share).group(sample) for sample in samples])
        (scores,) = model(batch.packed, [Values(batch.targets.rows)])
        for number, (path, _) in enumerate(batch.packed.unroll()):
            (alone,) = model(path, [Values(torch.tensor([len(path) - 1]))])
            torch.testing.assert_close(scores[number], alone[0], rtol=1e-10, atol=1e-10)
            wanted = np.concatenate([samples[number // 2].prompt, samples[number // 2].answers[number % 2]])
            assert path.tokens.tolist() == wanted.tolist()
    outcome = method.loss({"policy": model}, batch)
    chosen, rejected = scores[0::2], scores[1::2]
    torch.testing.assert_close(outcome.losses["reward"], -(chosen - rejected).sigmoid().log().sum())


def test_calibration_is_how_often_the_model_is_right_when_it_is_so_sure() -> None:
    """By counting, bin by bin; nothing of it while training."""
    method, model = Reward(), tiny.model("llama", num_labels=1)
    batch = Batch.join([method.group(sample) for sample in pairs([(2, 3, 3)] * 24)])
    assert not any("calibration" in name for name in method.loss({"policy": model.train()}, batch).metrics)
    outcome, pairs_there = method.loss({"policy": model.eval()}, batch), method.counts(batch)["reward"]
    (scores,) = model(batch.packed, [Values(batch.targets.rows)])
    margins = (scores[0::2] - scores[1::2]).tolist()
    sure = [max(p, 1 - p) for p in (1 / (1 + math.exp(-m)) for m in margins)]
    error = 0.0
    for number in range(BINS):
        low, high = 0.5 + number / (2 * BINS), 0.5 + (number + 1) / (2 * BINS)
        held = [i for i, p in enumerate(sure) if low <= p < high or (number == BINS - 1 and p >= high)]
        right = sum(margins[i] > 0 for i in held)
        assert float(outcome.metrics[f"calibration_{number}_share"]) == len(held)
        assert float(outcome.metrics[f"calibration_{number}_agreement"]) == right
        assert float(outcome.metrics[f"calibration_{number}_confidence"]) == pytest.approx(sum(sure[i] for i in held))
        error += abs(right - sum(sure[i] for i in held)) / pairs_there
    told = method.summarize({name: float(value.detach()) / pairs_there for name, value in outcome.metrics.items()})
    assert told["calibration_error"] == pytest.approx(error)
    assert told["reward_deviation"] == pytest.approx(float(scores.detach().std(correction=0)))
    assert sum(told[f"calibration_{number}_share"] for number in range(BINS)) == pytest.approx(1)


REFUSED = [
    (DPO(), {"answers": [[1, 2]]}, "dpo learns from pairs, and this prompt has 1 answer. .* method=kto"),
    (SimPO(), {"answers": [[1], [2], [3]]}, "simpo learns from pairs, and this prompt has 3 answers"),
    (ORPO(), {"values": {"desirable": [0, 1]}}, r"orpo learns from .* and these two are judged \[0.0, 1.0\]"),
    (Reward(), {"answers": [[1, 2]], "values": {"desirable": [1]}}, "reward learns from pairs"),
    (KTO(), {"answers": [[1, 2]]}, "of 1 answers it is not told which are desirable. Give each a label"),
    (KTO(), {"values": {"desirable": [1]}}, "of 2 answers it is not told which are desirable"),
    (KTO(), {"values": {"desirable": [1, 0.5]}}, "of 2 answers it is not told which are desirable"),
    (DPO(), {"prompt": []}, "the prompt has no tokens, so nothing predicts an answer's first"),
    (DPO(), {"answers": [[1], []]}, "an answer has no tokens"),
    (KTO(), {"answers": []}, "the prompt has no answer"),
]


@pytest.mark.parametrize(("method", "changes", "words"), REFUSED, ids=[case[2][:30] for case in REFUSED])
def test_what_cannot_be_learned_from_is_told_by_its_place(
    method: SequenceMethod, changes: dict[str, Any], words: str
) -> None:
    sample = Judged(0, [3, 4], [[1, 2], [2]], origin="pairs.jsonl:7")
    with pytest.raises(DataError, match=rf"^pairs.jsonl:7: {words}"):
        method.group(replace(sample, **changes))


SETTINGS = [
    ({"loss_type": "ipo", "label_smoothing": 0.1}, "label_smoothing is of sigmoid and robust: ipo has none"),
    ({"reference_free": True, "reference": "model"}, "reference is model, and reference_free asks for none"),
]


@pytest.mark.parametrize(("fields", "words"), SETTINGS)
def test_settings_that_contradict_each_other_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DPO(**fields)
    assert DPO(reference_free=True).asks == {}
    assert DPO(reference="precomputed").asks == {"reference": "precomputed"}
