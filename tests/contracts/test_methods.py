"""The contract of every exported method."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import tiny
from answers import sample_for
from danlu.batch import Batch
from danlu.contracts import SequenceMethod
from danlu.engine.context import Ringed
from danlu.parts.readout import Logits
from danlu.registry import exported, lookup
from rings import in_a_ring
from strategies import VOCABULARY

METHODS = [entry.name for entry in exported("method") if issubclass(entry.target, SequenceMethod)]
_LIKELIHOOD: list[dict[str, Any]] = [{}, {"label_smoothing": 0.1, "z_loss": 0.01}]
FIELDS: dict[str, list[dict[str, Any]]] = {
    "next_token": _LIKELIHOOD,
    "sft": _LIKELIHOOD,
    "dpo": [
        {"dropout": True},
        {"dropout": True, "loss_type": "robust", "label_smoothing": 0.1, "length_normalised": True, "sft_weight": 0.5},
        {"dropout": True, "loss_type": "ipo", "beta": 1.0, "reference_free": True, "share_prompt": False},
    ],
    "kto": [{"dropout": True, "beta": 0.5}, {"dropout": True, "desirable_weight": 2.0, "share_prompt": False}],
    "orpo": [{"dropout": True}, {"dropout": True, "learn_prompt": False, "share_prompt": False}],
    "simpo": [{"dropout": True}, {"dropout": True, "sft_weight": 0.3, "label_smoothing": 0.1}],
    "reward": [{"dropout": True}, {"dropout": True, "centring": 0.01, "share_prompt": False}],
}
"""Some settings of each method, all of them dropping what the model drops; a new method adds its line here."""
CASES = [(name, number) for name in METHODS for number in range(len(FIELDS.get(name, [{}])))]


@dataclass(frozen=True)
class Document:
    """A sample of token data."""

    id: int
    tokens: Any
    num_bytes: float = 11.0
    origin: str = "some.jsonl:1"
    weights: Any = None


def documents(lengths: Sequence[int]) -> list[Document]:
    generator = np.random.default_rng(len(lengths))
    return [
        Document(i, generator.integers(VOCABULARY, size=n + 1), 3.0 * n, f"some.jsonl:{i}")
        for i, n in enumerate(lengths)
    ]


def made(name: str, number: int = 0) -> SequenceMethod:
    assert name in FIELDS, f"'{name}' is exported; give it settings in tests/contracts/test_methods.py"
    method: SequenceMethod = lookup("method", name)(**FIELDS[name][number])
    return method


def samples(method: SequenceMethod, lengths: Sequence[int]) -> list[Any]:
    return [sample_for(method, document) for document in documents(lengths)]


def models(method: SequenceMethod) -> dict[str, nn.Module]:
    head = {"num_labels": 1} if method.scoring else {}
    return {role: tiny.model("llama", seed=seed, **head) for seed, role in enumerate((method.roles[0], *method.asks))}


def measured(
    method: SequenceMethod, roles: dict[str, nn.Module], batch: Batch
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The losses, the metrics, and the gradients of the losses' plain sum."""
    policy = roles[method.roles[0]]
    outcome = method.loss(roles, batch)
    names, parameters = zip(*policy.named_parameters(), strict=True)
    gradients = torch.autograd.grad(sum(outcome.losses.values()), parameters)
    return outcome.losses, outcome.metrics, dict(zip(names, gradients, strict=True))


def same(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(
            value.detach(), b[name].detach(), rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def total(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {name: sum(part[name] for part in parts) for name in parts[0]}


@pytest.mark.parametrize("name", METHODS)
def test_every_field_is_documented_beside_it(name: str) -> None:
    assert all(f.description for f in lookup("method", name).model_fields.values())
    assert made(name).roles


@pytest.mark.parametrize("name", METHODS)
def test_a_sample_becomes_a_group_that_keeps_who_and_whence_it_is(name: str) -> None:
    method = made(name)
    group = method.group(samples(method, [4, 6])[1])
    assert set(group.packed.sample.tolist()) == {1}
    assert (group.num_samples, group.num_bytes, group.origin) == (1, 18.0, ("some.jsonl:1",))
    assert len(group.targets) > 0
    assert int(group.targets.rows.max()) < len(group)
    assert method.size(samples(method, [4, 6])[1]) >= len(group)


@pytest.mark.parametrize(("name", "number"), CASES)
@pytest.mark.parametrize("training", [False, True])
def test_losses_are_sums_so_that_joining_packs_adds_them(name: str, number: int, training: bool) -> None:
    method = made(name, number)
    roles = {role: model.train(training) for role, model in models(method).items()}

    def check(lengths: list[int], cut: int) -> None:
        groups = [method.group(sample) for sample in method.matched(samples(method, lengths))]
        packs = [Batch.join(groups[:cut]), Batch.join(groups[cut:])]
        whole = measured(method, roles, Batch.join(groups))
        parts = [measured(method, roles, pack) for pack in packs]
        for together, apart in zip(whole, zip(*parts, strict=True), strict=True):
            same(together, total(apart))
        assert whole[0]
        assert all(value.dim() == 0 and value.requires_grad for value in whole[0].values())

    for lengths, cut in (([3], 1), ([3], 0), ([5, 1, 7], 1), ([2, 2, 9, 4], 3)):
        check(lengths, cut)


@pytest.mark.parametrize(("name", "number"), CASES)
def test_counts_come_from_data_alone_and_add_up(name: str, number: int) -> None:
    method = made(name, number)
    batch = Batch.join([method.group(sample) for sample in method.matched(samples(method, [3, 1, 6]))])
    roles = models(method)
    for training in (False, True):
        outcome = method.loss({role: model.train(training) for role, model in roles.items()}, batch)
        assert set(outcome.losses) | set(outcome.metrics) <= set(method.counts(batch))

    @given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 5))
    def check(lengths: list[int], cut: int) -> None:
        groups = [method.group(sample) for sample in method.matched(samples(method, lengths))]
        whole = method.counts(Batch.join(groups))
        packs = [Batch.join(groups[:cut]), Batch.join(groups[cut:])]
        assert whole == pytest.approx(total([method.counts(pack) for pack in packs]))
        assert whole == pytest.approx(total([method.counts(group) for group in groups]))
        assert all(count >= 0 for count in whole.values())

    check()


@pytest.mark.parametrize(("name", "number"), CASES)
def test_a_pack_of_nothing_adds_nothing(name: str, number: int) -> None:
    """What a rank runs that has no more samples: its terms are there, and zero."""
    method, nothing = made(name, number), Batch.join([])
    roles = models(method)
    losses, metrics, gradients = measured(method, roles, nothing)
    full, more, _ = measured(method, roles, method.group(samples(method, [4])[0]))
    assert (losses.keys(), metrics.keys()) == (full.keys(), more.keys())
    assert not any(value.detach() for value in (*losses.values(), *metrics.values()))
    assert not any(method.counts(nothing).values())
    assert not any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize(("name", "number"), CASES)
def test_averages_are_summarized_without_loss(name: str, number: int) -> None:
    method = made(name, number)
    batch = Batch.join([method.group(sample) for sample in method.matched(samples(method, [3, 1, 6]))])
    outcome, counts = method.loss(models(method), batch), method.counts(batch)
    averages = {key: float(value.detach()) / counts[key] for key, value in outcome.metrics.items() if counts[key]}
    averages["loss"] = sum(float(value.detach()) / counts[key] for key, value in outcome.losses.items())
    told = method.summarize(averages)
    assert told.items() >= averages.items()
    assert all(math.isfinite(value) for value in told.values())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("number", [0, 1])
def test_next_token_is_the_mean_cross_entropy_of_each_token_after_the_first(number: int, training: bool) -> None:
    method = made("next_token", number)
    model = tiny.model("llama").train(training)
    samples = documents([5, 1, 7])
    batch = Batch.join([method.group(sample) for sample in samples])
    outcome, counts = method.loss({"policy": model}, batch), method.counts(batch)
    (logits,) = model(batch.packed, [Logits(torch.arange(len(batch)))])
    wanted = torch.cat([torch.from_numpy(sample.tokens[1:]) for sample in samples])
    assert torch.equal(batch.packed.tokens, torch.cat([torch.from_numpy(sample.tokens[:-1]) for sample in samples]))
    nll = F.cross_entropy(logits, wanted, reduction="sum")
    smoothing, z_loss = (method.label_smoothing, method.z_loss) if training else (0.0, 0.0)
    loss = F.cross_entropy(logits, wanted, reduction="sum", label_smoothing=smoothing)
    loss = loss + z_loss * logits.logsumexp(1).square().sum()
    torch.testing.assert_close(outcome.losses["nll"], loss)
    torch.testing.assert_close(outcome.metrics["bits_per_byte"], nll.detach())
    assert counts["nll"] == counts["accuracy"] == 13
    assert counts["bits_per_byte"] == pytest.approx(3.0 * 13 * math.log(2))
    assert float(outcome.metrics["accuracy"]) == int((logits.argmax(1) == wanted).sum())
    plain = outcome.metrics.get("nll", outcome.losses["nll"])
    torch.testing.assert_close(plain.detach(), nll.detach())
    average = float(plain.detach()) / counts["nll"]
    assert method.summarize({"loss": 9.0, "nll": average})["perplexity"] == pytest.approx(math.exp(average))
    assert method.summarize({"loss": 800.0})["perplexity"] == math.inf


def test_sft_learns_what_has_a_weight_and_nothing_else() -> None:
    method, model = made("sft"), tiny.model("llama").eval()
    whole = documents([9])[0]
    weights = np.array([0, 0, 1, 2, 0, 0.5, 0, 0, 0], dtype=np.float32)
    group = method.group(replace(whole, weights=weights))
    (logits,) = model(method.group(whole).packed, [Logits(torch.arange(9))])
    nll = F.cross_entropy(logits, torch.from_numpy(whole.tokens[1:]), reduction="none")
    outcome, counts = method.loss({"policy": model}, group), method.counts(group)
    torch.testing.assert_close(outcome.losses["nll"], (nll * torch.from_numpy(weights)).sum())
    assert counts["nll"] == 3.5
    assert counts["bits_per_byte"] == pytest.approx(27 * math.log(2))
    assert len(group) == 6  # no row behind the last one that predicts
    assert len(group.targets) == 3


def test_sft_with_nothing_to_learn_counts_nothing() -> None:
    method = made("sft")
    group = method.group(replace(documents([4])[0], weights=np.zeros(4, dtype=np.float32)))
    assert len(group) == 4
    assert not any(method.counts(group).values())


@pytest.mark.parametrize(("name", "number"), CASES)
def test_on_a_ring_every_rank_has_its_part(name: str, number: int) -> None:
    """Of sums its own rows', of what is bent one over the number of ranks; gradients add up to those of one."""
    method = made(name, number)
    roles = models(method)
    batch = Batch.join([method.group(sample) for sample in method.matched(samples(method, [5, 2, 9, 4]))])
    whole = measured(method, roles, batch)

    def share(ring: Any) -> Any:
        own = {role: Ringed(copy.deepcopy(m), ring, values=method.by_sequence) for role, m in roles.items()}  # type: ignore[arg-type]
        outcome = method.loss(own, batch)
        part = 1 / ring.size if method.by_sequence else 1.0
        parameters = dict(own[method.roles[0]].inner.named_parameters())
        gradients = torch.autograd.grad(sum(outcome.losses.values()) * part, list(parameters.values()))
        scaled = [{n: v * part for n, v in terms.items()} for terms in (outcome.losses, outcome.metrics)]
        return *scaled, dict(zip(parameters, gradients, strict=True))

    shares = in_a_ring(2, share)
    for together, parts in zip(whole, zip(*shares, strict=True), strict=True):
        same(together, total(parts))
