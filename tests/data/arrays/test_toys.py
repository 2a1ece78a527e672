"""Toys: drawn by key alone, as dense as their closed forms say, each point where its part is."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from danlu.data.arrays import TOYS, log_density, toy


@pytest.mark.parametrize("name", TOYS)
def test_points_follow_from_the_seed_alone(name: str) -> None:
    first, again, other = (toy(name, 500, seed, labelled=True) for seed in (3, 3, 4))
    assert np.array_equal(first.x, again.x)
    assert np.array_equal(first.condition, again.condition)
    assert not np.array_equal(first.x, other.x)
    assert first.x.dtype == np.float32
    assert first.shape == (2,)
    assert set(first.condition) == set(range(len(TOYS[name].parts)))
    assert toy(name, 500, 3).condition is None


def test_noise_is_added_to_every_coordinate() -> None:
    still, moved = (toy("moons", 20_000, 0, noise=noise) for noise in (0.0, 0.3))
    gap = (moved.x - still.x).astype(np.float64)
    assert gap.std(0) == pytest.approx([0.3, 0.3], rel=0.03)
    assert np.corrcoef(gap.T)[0, 1] == pytest.approx(0.0, abs=0.03)


def test_without_noise_points_lie_on_their_curves() -> None:
    moons, rings, spirals = (toy(name, 1000, 0, noise=0.0, labelled=True) for name in ("moons", "rings", "spirals"))
    middle = np.where(moons.condition[:, None] == 0, [0.0, 0.0], [1.0, 0.5])
    assert np.linalg.norm(moons.x - middle, axis=1) == pytest.approx(1.0, abs=1e-6)
    assert ((moons.x[:, 1] >= 0) | (moons.condition == 1)).all()
    radius = np.linalg.norm(rings.x, axis=1) * np.sqrt(2)
    assert radius == pytest.approx(rings.condition + 1, abs=1e-5)
    turned = np.where(spirals.condition[:, None] == 0, spirals.x, -spirals.x)
    length = np.linalg.norm(turned, axis=1)
    expected = length[:, None] * np.stack([-np.cos(3 * length), np.sin(3 * length)], 1)
    assert turned == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["eight_gaussians", "checkerboard"])
def test_points_are_as_dense_as_the_closed_form(name: str) -> None:
    """On a grid it integrates to one, and counts in cells are those that it gives (chi squared)."""
    steps, cells = 400, 20
    edge = np.linspace(-5, 5, steps, endpoint=False) + 5 / steps
    grid = np.stack(np.meshgrid(edge, edge, indexing="ij"), -1).reshape(-1, 2)
    mass = np.exp(log_density(name, grid)).reshape(steps, steps) * (10 / steps) ** 2
    assert mass.sum() == pytest.approx(1.0, abs=2e-3)
    expected = mass.reshape(cells, steps // cells, cells, steps // cells).sum((1, 3)).ravel()
    x = toy(name, 50_000, 1).x
    counts = np.histogram2d(x[:, 0], x[:, 1], cells, [[-5, 5], [-5, 5]])[0].ravel()
    told = expected * len(x) > 5
    assert stats.chisquare(counts[told], expected[told] / expected[told].sum() * counts[told].sum()).pvalue > 1e-4
    assert counts[~told].sum() < 0.01 * len(x)


def test_each_part_is_its_own_gaussian_or_cell() -> None:
    gaussians, board = (toy(name, 40_000, 2, labelled=True) for name in ("eight_gaussians", "checkerboard"))
    for part, angle in enumerate(np.arange(8) * np.pi / 4):
        middle = gaussians.x[gaussians.condition == part].mean(0)
        assert middle == pytest.approx(2 * np.sqrt(2) * np.array([np.cos(angle), np.sin(angle)]), abs=0.05)
    spans = [np.ptp(board.x[board.condition == part], axis=0) for part in range(8)]
    assert np.stack(spans) == pytest.approx(2.0, abs=0.01)
