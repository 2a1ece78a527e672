from __future__ import annotations

import numpy as np
import pytest

from danlu.insight.curve import Curve
from danlu.insight.progress import judge_error, judge_returns

NOTHING = Curve.of([], [])


def curve(values: np.ndarray) -> Curve:
    return Curve.of(np.arange(len(values)), values)


def shapes(num: int) -> dict[str, np.ndarray]:
    """From 0 to about 1, as runs go."""
    part = np.linspace(0, 1, num)
    return {
        "levelled off": 1 - np.exp(-12 * part),
        "still improving": part,
        "fell back": np.where(part < 0.6, np.minimum(2 * part, 1), 0.4),
        "no better than at first": np.zeros(num),
    }


@pytest.mark.parametrize("verdict", shapes(4))
@pytest.mark.parametrize(("scale", "origin"), [(1.0, 0.0), (480.0, 20.0), (1500.0, -1600.0)])
def test_the_scale_of_rewards_and_noise_change_no_verdict(verdict: str, scale: float, origin: float) -> None:
    right = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        noisy = shapes(40)[verdict] + 0.03 * rng.normal(size=40)
        right += judge_returns(NOTHING, curve(origin + scale * noisy)).verdict == verdict
    assert right >= 37
    assert judge_returns(NOTHING, curve(origin + scale * shapes(40)[verdict])).verdict == verdict


def test_training_returns_are_judged_where_none_were_held_out() -> None:
    fit = judge_returns(curve(shapes(400)["levelled off"]), NOTHING)
    assert (fit.verdict, fit.sentence[:19]) == ("levelled off", "The training return")
    assert judge_returns(curve(np.ones(3)), NOTHING).verdict == "too early to tell"
    assert judge_returns(NOTHING, NOTHING).verdict == "too early to tell"


def test_an_error_that_stays_is_not_converging() -> None:
    rng = np.random.default_rng(0)
    assert judge_error(curve(1 + 0.1 * rng.normal(size=100)), "error").verdict == "not converging"
    assert judge_error(curve(0.9 ** np.arange(100)), "error").verdict == "converging"
    assert judge_error(curve(np.zeros(100)), "error").verdict == "converging"
    assert judge_error(curve(np.ones(2)), "error").verdict == "too early to tell"


@pytest.mark.parametrize("power", [-1.0, -0.5])
def test_the_power_by_which_an_error_falls_is_found_through_noise(power: float) -> None:
    steps = np.arange(1, 4001)
    noise = np.abs(np.random.default_rng(0).normal(size=4000))
    sentence = judge_error(Curve.of(steps, steps**power * noise), "error").sentence
    assert float(sentence.split("step^")[1].rstrip(".")) == pytest.approx(power, abs=0.11)
    flat = judge_error(Curve.of(steps, noise), "error").sentence
    assert "step^" not in flat
