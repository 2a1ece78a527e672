from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from danlu.insight.curve import Curve
from danlu.insight.fit import MIN_EVALUATIONS, MIN_STEPS, judge_fit

NOTHING = Curve.of([], [])
STEPS = np.arange(1, 1001)
EVALUATIONS = np.arange(0, 1001, 50)


def learnt(steps: np.ndarray, floor: float = 1.5) -> np.ndarray:
    """A loss that falls from 4 and has reached its floor by the end."""
    return floor + (4.0 - floor) * np.exp(-steps / 80.0)


def noisy(values: np.ndarray, size: float, seed: int) -> np.ndarray:
    return values + size * np.random.default_rng(seed).normal(size=len(values))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1])
class TestNoiseChangesNoVerdict:
    def test_fitting_well(self, noise: float, seed: int) -> None:
        train = Curve.of(STEPS, noisy(learnt(STEPS), noise, seed))
        held_out = Curve.of(EVALUATIONS, noisy(learnt(EVALUATIONS) + 0.03, noise / 10, seed + 100))
        assert judge_fit(train, held_out).verdict == "fitting well"

    def test_over_fitting_where_held_out_rises(self, noise: float, seed: int) -> None:
        train = Curve.of(STEPS, noisy(learnt(STEPS, 0.6), noise, seed))
        rise = 0.0006 * np.maximum(EVALUATIONS - 300, 0)
        held_out = Curve.of(EVALUATIONS, noisy(learnt(EVALUATIONS) + rise, noise / 10, seed + 100))
        fit = judge_fit(train, held_out)
        assert fit.verdict == "over-fitting"
        assert fit.best_step is not None
        assert 200 <= fit.best_step <= 500

    def test_over_fitting_where_held_out_stays_far_above(self, noise: float, seed: int) -> None:
        train = Curve.of(STEPS, noisy(learnt(STEPS, 0.8), noise, seed))
        held_out = Curve.of(EVALUATIONS, learnt(EVALUATIONS, 1.5))
        assert judge_fit(train, held_out).verdict == "over-fitting"

    def test_under_fitting_where_both_still_fall(self, noise: float, seed: int) -> None:
        train = Curve.of(STEPS, noisy(4.0 - 0.002 * STEPS, noise, seed))
        held_out = Curve.of(EVALUATIONS, noisy(4.02 - 0.002 * EVALUATIONS, noise / 10, seed + 100))
        assert judge_fit(train, held_out).verdict == "under-fitting"

    def test_under_fitting_where_nothing_was_learnt(self, noise: float, seed: int) -> None:
        uniform = math.log(65)
        train = Curve.of(STEPS, noisy(np.full(len(STEPS), uniform), noise, seed))
        held_out = Curve.of(EVALUATIONS, noisy(np.full(len(EVALUATIONS), uniform), noise / 10, seed + 100))
        fit = judge_fit(train, held_out, vocab_size=65)
        assert fit.verdict == "under-fitting"
        assert f"{uniform:.3f}" in fit.sentence


def test_one_bad_evaluation_is_no_verdict() -> None:
    values = learnt(EVALUATIONS) + 0.02
    values[-1] += 0.5
    spike = judge_fit(Curve.of(STEPS, learnt(STEPS)), Curve.of(EVALUATIONS, values))
    assert spike.verdict != "under-fitting"
    values[-1], values[10] = learnt(EVALUATIONS)[-1] + 0.02, 5.0
    assert judge_fit(Curve.of(STEPS, learnt(STEPS)), Curve.of(EVALUATIONS, values)).verdict == "fitting well"


def test_divergence_is_not_called_over_fitting() -> None:
    blown_up = 0.01 * np.maximum(STEPS - 600, 0)
    late = 0.01 * np.maximum(EVALUATIONS - 600, 0)
    fit = judge_fit(Curve.of(STEPS, learnt(STEPS) + blown_up), Curve.of(EVALUATIONS, learnt(EVALUATIONS) + late))
    assert fit.verdict == "not known"
    assert "diverged" in fit.sentence


def test_over_fitting_from_the_first_step() -> None:
    fit = judge_fit(Curve.of(STEPS, learnt(STEPS, 0.1)), Curve.of(EVALUATIONS, 2.0 + 0.001 * EVALUATIONS))
    assert (fit.verdict, fit.best_step) == ("over-fitting", 0)


@pytest.mark.parametrize(
    ("train", "held_out", "word"),
    [
        (NOTHING, NOTHING, "No training step"),
        (NOTHING, Curve.of([0], [4.0]), "No training step"),
        (Curve.of(STEPS, learnt(STEPS)), NOTHING, "nothing was held out"),
        (Curve.of([1], [4.0]), Curve.of([0], [4.0]), "too short"),
        (
            Curve.of(STEPS[: MIN_STEPS - 1], learnt(STEPS[: MIN_STEPS - 1])),
            Curve.of([0, 9, 19], [4, 3, 2]),
            "too short",
        ),
        (Curve.of(STEPS, learnt(STEPS)), Curve.of([0, 1000][: MIN_EVALUATIONS - 1], [4, 1.6]), "too short"),
        (Curve.of(STEPS, np.full(len(STEPS), np.nan)), Curve.of([0], [np.nan]), "No training step"),
    ],
)
def test_too_little_to_judge(train: Curve, held_out: Curve, word: str) -> None:
    fit = judge_fit(train, held_out)
    assert fit.verdict == "not known"
    assert word in fit.sentence


def test_densities_may_be_negative() -> None:
    train, held_out = learnt(STEPS) - 3.0, learnt(EVALUATIONS) - 2.97
    assert judge_fit(Curve.of(STEPS, train), Curve.of(EVALUATIONS, held_out)).verdict == "fitting well"


def test_the_sentence_carries_its_numbers() -> None:
    fit = judge_fit(Curve.of(STEPS, learnt(STEPS)), Curve.of(EVALUATIONS, learnt(EVALUATIONS) + 0.03))
    assert fit.train_loss == pytest.approx(1.5, abs=1e-3)
    assert fit.held_out_loss == pytest.approx(1.53, abs=1e-3)
    assert f"{fit.train_loss:.3f}" in fit.sentence
    assert f"{fit.held_out_loss:.3f}" in fit.sentence


def test_envelope_keeps_every_peak_and_the_order() -> None:
    values = np.zeros(100_000)
    values[[17, 50_000, 99_998]] = [9.0, -7.0, 5.0]
    drawn = Curve.of(np.arange(100_000), values).envelope(2000)
    assert len(drawn) <= 2000
    assert {9.0, -7.0, 5.0} <= set(drawn.values)
    assert all(before < after for before, after in pairwise(drawn.steps))


def test_smoothing_keeps_a_constant_and_the_first_value() -> None:
    assert np.allclose(Curve.of(STEPS, np.full(len(STEPS), 2.0)).smoothed(50).values, 2.0)
    falling = Curve.of(STEPS, learnt(STEPS))
    assert falling.smoothed(50).values[0] == falling.values[0]
