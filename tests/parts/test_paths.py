"""Paths from noise to data, which noise goes with which data, and how times are spread and told."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from danlu.errors import UnsupportedError
from danlu.parts import paths
from danlu.parts.paths import PATHS, LinearPath, Path, TrigonometricPath, nearest_noise
from danlu.parts.times import Clock, Times, geometric, harmonic, noise_and_shares, times_of
from danlu.random import normal, token_keys

ALL: list[Path] = [kind(at) for kind in (LinearPath, TrigonometricPath) for at in (0, 1)]  # type: ignore[arg-type]


def keys(num: int, key: int = 3) -> torch.Tensor:
    return token_keys(key, torch.arange(num), torch.zeros(num, dtype=torch.int64))


@pytest.mark.parametrize("path", ALL, ids=str)
@pytest.mark.parametrize("shape", [(3,), (2, 4, 4)])
def test_a_path_leads_from_noise_to_data_as_fast_as_it_says(path: Path, shape: tuple[int, ...]) -> None:
    noise, data = torch.randn(2, 5, *shape, dtype=torch.float64)
    for time, there in ((path.noise_at, noise), (path.data_at, data)):
        torch.testing.assert_close(path.at(torch.full((5,), float(time), dtype=torch.float64), noise, data), there)
    t = torch.rand(5, dtype=torch.float64, requires_grad=True)
    for k in range(3):
        place = path.at(t, noise, data).flatten(1)[:, k].sum()
        (rate,) = torch.autograd.grad(place, t)
        torch.testing.assert_close(path.velocity(t.detach(), noise, data).flatten(1)[:, k], rate)


def test_what_the_paths_are_at_a_quarter() -> None:
    t, noise, data = torch.tensor([0.25]), torch.tensor([[4.0]]), torch.tensor([[8.0]])
    assert PATHS["linear"].at(t, noise, data).item() == 5.0
    assert PATHS["linear"].velocity(t, noise, data).item() == 4.0
    assert LinearPath(1).at(t, noise, data).item() == 7.0
    assert LinearPath(1).velocity(t, noise, data).item() == -4.0
    there = 4 * math.cos(math.pi / 8) + 8 * math.sin(math.pi / 8)
    assert PATHS["trigonometric"].at(t, noise, data).item() == pytest.approx(there)


def distances(noise: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    return (noise - data).square().flatten(1).sum(1)


@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_the_nearest_of_all_permutations(seed: int) -> None:
    noise, data = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(seed))
    found = nearest_noise(noise, data, (5,))
    sums = {p: float(distances(noise[list(p)], data).sum()) for p in itertools.permutations(range(5))}
    assert tuple(found.tolist()) == min(sums, key=lambda p: sums[p])
    assert sorted(found.tolist()) == list(range(5))


def test_pairs_are_made_within_a_group_whatever_else_is_there() -> None:
    noise, data = torch.randn(2, 12, 2, generator=torch.Generator().manual_seed(1))
    whole = nearest_noise(noise, data, (5, 4, 3))
    apart, start = [], 0
    for num in (5, 4, 3):
        rows = slice(start, start + num)
        apart.append(nearest_noise(noise[rows], data[rows], (num,)) + start)
        start += num
    assert torch.equal(whole, torch.cat(apart))
    assert not torch.equal(whole, nearest_noise(noise, data, (12,)))


def test_pairs_are_made_within_a_class_so_that_its_noise_stays_as_it_is() -> None:
    data = torch.tensor([[-9.0]] * 4 + [[9.0]] * 4)
    noise, classes = torch.linspace(-1, 1, 8)[:, None], torch.tensor([0, 1] * 4)
    found = nearest_noise(noise, data, (8,), classes)
    assert torch.equal(classes[found], classes)
    assert float(distances(noise[found], data).sum()) <= float(distances(noise, data).sum())
    assert noise[nearest_noise(noise, data, (8,))][:4].max() < 0, "without classes the left half goes left"


def test_without_scipy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "_MISSING", True)
    with pytest.raises(
        UnsupportedError, match=r"scipy, which is not installed. Install it with `pip install 'danlu\[density\]'`"
    ):
        nearest_noise(torch.zeros(2, 1), torch.zeros(2, 1), (2,))


SPREADS: list[tuple[Times, int, object]] = [
    ("uniform", 0, stats.uniform()),
    ("beta", 1, stats.beta(1.5, 1, loc=0.001, scale=0.999)),
    ("beta", 0, None),
    ("logit_normal", 0, None),
]


@pytest.mark.parametrize(("times", "noise_at", "law"), SPREADS)
def test_times_are_spread_as_their_name_says(times: Times, noise_at: int, law: object) -> None:
    _, (u,) = noise_and_shares(keys(4000), 5, 1, 1)
    t = times_of(u, times, noise_at).double().numpy()  # type: ignore[arg-type]
    assert t.min() >= 0
    assert t.max() <= 1
    if times == "logit_normal":
        t, law = np.log(t / (1 - t)), stats.norm()
    elif law is None:
        t, law = 1 - t, stats.beta(1.5, 1, loc=0.001, scale=0.999)
    assert stats.kstest(t, law.cdf).pvalue > 0.01  # type: ignore[attr-defined]


def test_noise_and_shares_are_independent_and_keyed() -> None:
    noise, shares = noise_and_shares(keys(5000), 5, 3, 2)
    every = torch.cat([noise, torch.stack(shares, 1)], 1).double().numpy()
    for column in every[:, :3].T:
        assert stats.kstest(column, "norm").pvalue > 0.01
    for column in every[:, 3:].T:
        assert stats.kstest(column, "uniform").pvalue > 0.01
    assert np.abs(np.corrcoef(every.T) - np.eye(5)).max() < 0.06
    some = torch.tensor([7, 3, 99])
    again, others = noise_and_shares(keys(5000)[some], 5, 3, 2)
    assert torch.equal(again, noise[some])
    assert torch.equal(torch.stack(others), torch.stack(shares)[:, some])
    assert not torch.equal(noise, normal(keys(5000), 6, 3))


def test_a_clock_tells_cosines_and_sines() -> None:
    clock, t = Clock(harmonic(3)), torch.tensor([0.0, 0.2, 0.9])
    angles = t[:, None] * math.pi * torch.tensor([1.0, 2.0, 3.0])
    assert len(clock) == 6
    torch.testing.assert_close(clock(t), torch.cat([angles.cos(), angles.sin()], 1), atol=1e-6, rtol=0)
    for i, one in enumerate(t.tolist()):
        torch.testing.assert_close(clock.at(one), clock(t)[i], atol=1e-6, rtol=0)
    assert not list(clock.state_dict())
    periods = 2 * math.pi / geometric(5, 4.0, 0.04)
    torch.testing.assert_close(periods, torch.tensor([4.0, 4 / 10**0.5, 0.4, 0.4 / 10**0.5, 0.04]), rtol=1e-4, atol=0)
