"""Losses, gradients and metrics are those of TRL's trainers on the same batch, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from answers import Judged
from danlu.batch import Batch
from danlu.contracts import SequenceMethod, SequenceModel
from danlu.method.dpo import DPO
from danlu.method.kto import KTO
from danlu.method.orpo import ORPO
from danlu.method.reward import Reward
from danlu.method.simpo import SimPO
from danlu.registry import lookup
from parity.oracle import precise

from . import trl_losses

CONFIG: dict[str, Any] = {
    "vocab_size": 23,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": trl_losses.PAD,
}
LENGTHS = [(4, 5, 3), (2, 6, 7), (5, 1, 4)]
EXACT = {"rtol": 1e-9, "atol": 1e-10}


def theirs(seed: int, *, scores: bool = False) -> Any:
    kind = transformers.LlamaForSequenceClassification if scores else transformers.LlamaForCausalLM
    model = kind(transformers.LlamaConfig(**CONFIG, **({"num_labels": 1} if scores else {}))).eval()
    model.config.architectures = [kind.__name__]  # as its files would have it
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.copy_((parameter.dim() == 1) + 0.3 * torch.randn(parameter.shape, generator=generator))
    return precise(model)


def ours(model: Any) -> SequenceModel:
    config = lookup("architecture", "llama").from_hub(model.config.to_dict())
    made: SequenceModel = config.build().double()
    made.compute_dtype = torch.float64
    given = dict(model.named_parameters())
    made.load_state_dict({name: given[hub].detach() for name, hub in config.hub_names().items()}, strict=False)
    return made.eval()


def samples(lengths: Sequence[tuple[int, ...]] = LENGTHS, **values: Any) -> list[Judged]:
    """Without the padding's token."""
    generator = np.random.default_rng(5)
    made = []
    for number, (prompt, *answers) in enumerate(lengths):
        mine = {name: each[number] for name, each in values.items()}
        ids = [generator.integers(1, CONFIG["vocab_size"], size=size) for size in answers]
        made.append(Judged(number, generator.integers(1, CONFIG["vocab_size"], size=prompt), ids, values=mine))
    return made


def learned(
    method: SequenceMethod, models: Mapping[str, SequenceModel], data: Sequence[Judged]
) -> tuple[dict[str, float], Any]:
    """What is summarised of an update, and every gradient by its hub name."""
    batch = Batch.join([method.group(sample) for sample in method.matched(data)])
    counts = method.counts(batch)
    with torch.no_grad():
        estimates = {name: float(value) / counts[name] for name, value in method.estimates(models, batch).items()}
    outcome = method.loss(models, replace(batch, estimates=estimates))
    loss = torch.stack([value / counts[name] for name, value in outcome.losses.items()]).sum()
    policy = models["policy"]
    policy.zero_grad()
    loss.backward()
    names = policy.config.hub_names()
    gradients = {names[name]: p.grad for name, p in policy.named_parameters()}
    averages = {name: float(value) / counts[name] for name, value in outcome.metrics.items() if counts[name]}
    return method.summarize({**averages, "loss": float(loss.detach())}), gradients


def same(found: tuple[dict[str, float], Any], loss: Tensor, model: Any) -> dict[str, float]:
    """Our loss and gradients are theirs; our metrics."""
    told, gradients = found
    assert told["loss"] == pytest.approx(float(loss.detach()), rel=1e-9)
    model.zero_grad()
    loss.backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    assert gradients.keys() == expected.keys()
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-3
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], **EXACT, msg=lambda m, n=name: f"{n}: {m}")
    return told


def agree(told: Mapping[str, float], metrics: Mapping[str, Any], names: Mapping[str, str]) -> None:
    for name, other in names.items():
        value = metrics[other]
        assert told[name] == pytest.approx(value[0] if isinstance(value, list) else value, rel=1e-6), name


PAIRS = {
    "accuracy": "rewards/accuracies",
    "margin": "rewards/margins",
    "reward_chosen": "rewards/chosen",
    "reward_rejected": "rewards/rejected",
    "log_prob_chosen": "logps/chosen",
    "log_prob_rejected": "logps/rejected",
}
DPO_CASES: list[tuple[dict[str, Any], list[str], dict[str, Any]]] = [
    ({}, ["sigmoid"], {}),
    ({"beta": 0.5}, ["sigmoid"], {}),
    ({"loss_type": "hinge", "beta": 0.2}, ["hinge"], {}),
    ({"loss_type": "ipo", "beta": 0.3}, ["ipo"], {}),
    ({"loss_type": "robust", "label_smoothing": 0.2}, ["robust"], {}),
    ({"length_normalised": True, "beta": 2.0}, ["sigmoid_norm"], {}),
    ({"sft_weight": 0.7}, ["sigmoid", "sft"], {"loss_weights": [1.0, 0.7]}),
]


@pytest.mark.parametrize("share_prompt", [True, False])
@pytest.mark.parametrize(("fields", "types", "more"), DPO_CASES, ids=[str(case[0]) for case in DPO_CASES])
def test_dpo(fields: dict[str, Any], types: list[str], more: dict[str, Any], share_prompt: bool) -> None:
    method, policy, reference = DPO(**fields, share_prompt=share_prompt), theirs(0), theirs(1)
    models = {"policy": ours(policy), "reference": ours(reference)}
    found = learned(method, models, samples())
    settings = {"beta": method.beta, "label_smoothing": method.label_smoothing, **more}
    loss, metrics = trl_losses.dpo(*map(trl_losses.Fused, (policy, reference)), samples(), types, **settings)
    told = same(found, loss, policy)
    if (
        not method.length_normalised and method.loss_type != "ipo"
    ):  # whose rewards are a token's here, an answer's there
        agree(told, metrics, PAIRS)
    assert told["log_prob_chosen"] == pytest.approx(metrics["logps/chosen"][0], rel=1e-6)
    if not fields:
        assert told["loss"] != pytest.approx(math.log(2), rel=1e-3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dpo_without_a_reference(smoothing: float) -> None:
    """And conservative DPO, which newer versions of TRL have in this trainer only."""
    policy = theirs(0)
    method = DPO(reference_free=True, label_smoothing=smoothing, beta=0.2)
    found = learned(method, {"policy": ours(policy)}, samples())
    loss, metrics = trl_losses.cpo(policy, samples(), loss_type="sigmoid", beta=0.2, label_smoothing=smoothing)
    agree(same(found, loss, policy), metrics, PAIRS)


@pytest.mark.parametrize("fields", [{}, {"gamma": 0.5, "beta": 1.5, "label_smoothing": 0.1, "sft_weight": 0.4}])
def test_simpo(fields: dict[str, float]) -> None:
    policy, method = theirs(0), SimPO(**fields)
    found = learned(method, {"policy": ours(policy)}, samples())
    settings = {"beta": method.beta, "simpo_gamma": method.gamma, "label_smoothing": method.label_smoothing}
    loss, metrics = trl_losses.cpo(policy, samples(), loss_type="simpo", cpo_alpha=method.sft_weight, **settings)
    agree(same(found, loss, policy), metrics, {n: PAIRS[n] for n in list(PAIRS)[:4]})


@pytest.mark.parametrize("weight", [0.1, 0.8])
def test_orpo(weight: float) -> None:
    """Whose trainer goes through float32 on its way."""
    policy = theirs(0)
    told, gradients = learned(ORPO(weight=weight), {"policy": ours(policy)}, samples())
    loss, metrics = trl_losses.orpo(policy, samples(), weight)
    assert told["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
    agree(told, metrics, {**{n: PAIRS[n] for n in list(PAIRS)[:4]}, "log_odds": "log_odds_chosen", "nll": "nll_loss"})
    policy.zero_grad()
    loss.backward()
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-5, atol=1e-7)


KTO_LENGTHS = [(4, 5), (3, 4), (5, 4), (4, 3)]
"""Of a prompt and its answer; no mismatched sequence is longer than the longest of these."""


SEEDS = [(0, 1), (1, 0)]


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.5, 0.5)])
def test_kto(seeds: tuple[int, int], weights: tuple[float, float]) -> None:
    policy, reference = theirs(seeds[0]), theirs(seeds[1])
    data = samples(KTO_LENGTHS, desirable=[[1], [0], [1], [0]])
    assert max(len(s.prompt) + len(data[n - 1].answers[0]) for n, s in enumerate(data)) <= 9
    method = KTO(beta=0.2, desirable_weight=weights[0], undesirable_weight=weights[1])
    models = {"policy": ours(policy), "reference": ours(reference)}
    found = learned(method, models, data)
    settings = {"beta": 0.2, "desirable_weight": weights[0], "undesirable_weight": weights[1]}
    loss, metrics = trl_losses.kto(*map(trl_losses.Fused, (policy, reference)), data, **settings)
    told = same(found, loss, policy)
    names = {"kl": "kl", "reward_desirable": "rewards/chosen", "reward_undesirable": "rewards/rejected"}
    agree(told, metrics, {**names, "margin": "rewards/margins", "log_prob_undesirable": "logps/rejected"})


def test_kto_has_seen_both_signs_of_the_divergence() -> None:
    """Of the cases above one has a positive estimate and one a negative, which counts as 0."""
    data = samples(KTO_LENGTHS, desirable=[[1], [0], [1], [0]])
    signs = set()
    for policy, reference in SEEDS:
        method, models = KTO(), {"policy": ours(theirs(policy)), "reference": ours(theirs(reference))}
        batch = Batch.join([method.group(sample) for sample in method.matched(data)])
        with torch.no_grad():
            signs.add(float(method.estimates(models, batch)["kl"]) > 0)
    assert signs == {True, False}


@pytest.mark.parametrize(("margins", "centring"), [(None, None), ([0.5, 0.0, 1.5], None), (None, 0.05)])
@pytest.mark.parametrize("share_prompt", [True, False])
def test_reward(margins: list[float] | None, centring: float | None, share_prompt: bool) -> None:
    scorer = theirs(0, scores=True)
    given = {} if margins is None else {"margin": [[margin, margin] for margin in margins]}
    method = Reward(centring=centring or 0.0, share_prompt=share_prompt)
    found = learned(method, {"policy": ours(scorer)}, samples(**given))
    loss, metrics = trl_losses.reward(scorer, samples(), margins, centring)
    told = same(found, loss, scorer)
    agree(told, metrics, {"accuracy": "accuracy", "margin": "margin"})
    mean = (told["reward_chosen"] + told["reward_rejected"]) / 2
    assert mean == pytest.approx(metrics["mean_reward"][0], rel=1e-9)
