from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from danlu.generate.sampling import Sampling

RANGE = torch.arange


def logits_of(num_rows: int, vocabulary: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(num_rows, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def keys_of(sampling: Sampling, num: int) -> Tensor:
    return sampling.keys(RANGE(num), RANGE(num) % 7)


@pytest.mark.parametrize("top_p", [None, 1e-9, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("top_k", [None, 1, 5, 40, 1000])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_probabilities_are_those_of_transformers(temperature: float, top_k: int | None, top_p: float | None) -> None:
    scores = logits = logits_of(20, 40)
    warpers = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k is not None else []
    warpers += [TopPLogitsWarper(top_p)] if top_p is not None else []
    for warp in warpers:
        scores = warp(None, scores)
    actual = Sampling(temperature=temperature, top_k=top_k, top_p=top_p).probabilities(logits)
    assert torch.equal(actual > 0, scores > -torch.inf)
    torch.testing.assert_close(actual, scores.softmax(1), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(top_k=6), Sampling(top_p=0.8, temperature=0.7)], ids=["all", "top-k", "top-p"]
)
def test_tokens_are_drawn_as_often_as_they_are_likely(sampling: Sampling) -> None:
    """A chi-squared statistic against its 0.1% point (Wilson and Hilferty); what has no chance never comes."""
    num, logits = 40_000, logits_of(1, 12)
    drawn = sampling.choose(logits.expand(num, -1), keys_of(sampling, num)).bincount(minlength=12)
    likely = sampling.probabilities(logits)[0] * num
    assert not drawn[likely == 0].any()
    inside = likely > 0
    statistic = ((drawn - likely)[inside] ** 2 / likely[inside]).sum()
    freedom = int(inside.sum()) - 1
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3


def test_a_draw_is_a_function_of_seed_sample_and_position() -> None:
    sampling, logits = Sampling(seed=3), logits_of(1, 1000).expand(64, -1)
    sample, position = RANGE(64) % 8, RANGE(64) // 8
    drawn = sampling.choose(logits, sampling.keys(sample, position))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    again = sampling.choose(logits[order], sampling.keys(sample[order], position[order]))
    assert torch.equal(again, drawn[order])
    assert len(drawn.unique()) > 40
    assert not torch.equal(drawn, Sampling(seed=4).choose(logits, Sampling(seed=4).keys(sample, position)))


def test_neighbouring_samples_and_positions_are_independent() -> None:
    """Pairs of draws from a fair coin: four outcomes, three degrees of freedom, the 0.1% point."""
    sampling, num = Sampling(), 20_000
    coin = torch.zeros(num, 2)
    drawn = [
        sampling.choose(coin, sampling.keys(RANGE(num) + a, RANGE(num) % 5 + b)) for a, b in ((0, 0), (1, 0), (0, 1))
    ]
    for other in drawn[1:]:
        counts = (2 * drawn[0] + other).bincount(minlength=4)
        assert ((counts - num / 4) ** 2 / (num / 4)).sum() < 16.3


def test_temperature_zero_takes_the_most_likely() -> None:
    logits, greedy = logits_of(9, 30), Sampling(temperature=0, top_k=3, top_p=0.5)
    assert torch.equal(greedy.choose(logits, keys_of(greedy, 9)), logits.argmax(1))
    assert torch.equal(greedy.probabilities(logits).argmax(1), logits.argmax(1))
    assert torch.equal(greedy.probabilities(logits).sum(1), torch.ones(9, dtype=torch.float64))


def test_unlikely_tokens_at_the_ends_are_never_drawn() -> None:
    """Neither a first nor a last token of probability 0, whatever the uniform number is."""
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).expand(5000, -1)
    assert Sampling().choose(logits, keys_of(Sampling(), 5000)).unique().tolist() == [1, 2]


@pytest.mark.parametrize(
    "fields", [{"temperature": -1}, {"top_k": 0}, {"top_p": 0}, {"top_p": 1.1}, {"max_new_tokens": 0}, {"topk": 3}]
)
def test_what_cannot_be_meant_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        Sampling(**fields)
