"""Stochastic approximation: the mean exactly, roots with the rate that is due, and the conditions on steps."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from gymnasium.spaces import Discrete
from hypothesis import given
from hypothesis import strategies as st

from danlu.acting import ActingMethod
from danlu.errors import RunError, UnsupportedError
from danlu.method.approximation import Iterate
from danlu.method.incremental_mean import IncrementalMean, incremented
from danlu.method.robbins_monro import RobbinsMonro
from danlu.method.step_size import StepSize
from danlu.method.stochastic_gradient import StochasticGradient
from danlu.spaces import Spaces
from method.turns import turn


def found(method: ActingMethod, turns: int = 1, seed: int = 0) -> tuple[Iterate, list[dict[str, float]]]:
    agent = method.agent(Spaces.none(), None, seed)
    assert isinstance(agent, Iterate)
    return agent, [dict(method.learn(agent, None, turn(number, turns, seed))) for number in range(turns)]  # type: ignore[arg-type]


@given(st.lists(st.fractions(-1000, 1000), min_size=1, max_size=30), st.fractions(-10, 10))
def test_the_incremental_mean_is_the_mean_in_rational_numbers(seen: list[Fraction], start: Fraction) -> None:
    w = start
    for k, x in enumerate(seen, 1):
        w = incremented(w, x, k)
        assert w == sum(seen[:k]) / k


@given(st.lists(st.fractions(-1000, 1000), min_size=1, max_size=30), st.fractions(-10, 10))
def test_harmonic_steps_towards_the_mean_are_the_mean_in_rational_numbers(
    seen: list[Fraction], start: Fraction
) -> None:
    w, sizes = start, StepSize(kind="harmonic")
    for k, x in enumerate(seen, 1):
        w -= sizes.move(w - x, k)
    assert w == sum(seen) / len(seen)


def drawn(turns: int, steps: int, seed: int = 0) -> np.ndarray:
    return np.concatenate([turn(n, turns, seed).numpy_chance().standard_normal(steps) for n in range(turns)])


def test_the_mean_of_what_a_run_drew() -> None:
    agent, told = found(IncrementalMean(mean=3.0, noise=2.0, steps=400), turns=5)
    assert float(agent.w) == pytest.approx(np.mean(3 + 2 * drawn(5, 400)), abs=1e-13)
    assert int(agent.k) == 2000
    assert told[-1]["step_size"] == 1 / 2000
    assert told[-1]["iterate"] == float(agent.w)
    assert told[-1]["error"] == abs(float(agent.w) - 3)


def test_robbins_and_monros_algorithm_on_the_mean_is_the_incremental_mean() -> None:
    one, _ = found(IncrementalMean(mean=3.0, start=9.0, steps=50), turns=3)
    other, _ = found(RobbinsMonro(function="mean", mean=3.0, start=9.0, steps=50), turns=3)
    gradient, _ = found(
        StochasticGradient(solution=(3.0,), start=(9.0,), steps=50, step_size=StepSize(kind="harmonic")), turns=3
    )
    assert float(one.w) == float(other.w) == float(gradient.w)


@pytest.mark.parametrize(
    ("function", "root", "start"), [("tanh", 1, 3), ("cubic", 5 ** (1 / 3), 1.5), ("linear", 10, 0)]
)
def test_it_comes_to_the_root(function: str, root: float, start: float) -> None:
    size = StepSize(kind="polynomial", start=0.1 if function == "cubic" else 1.0, power=0.8)
    agent, told = found(RobbinsMonro(function=function, start=start, noise=0.5, step_size=size, steps=20_000))
    assert float(agent.w) == pytest.approx(root, abs=0.03)
    quiet, _ = found(RobbinsMonro(function=function, start=start, noise=0.0, step_size=size, steps=5000))
    assert float(quiet.w) == pytest.approx(root, abs=1e-3)
    assert told[0]["error"] == pytest.approx(abs(float(agent.w) - root))


def test_its_error_has_the_variance_of_a_mean() -> None:
    """Near a root where the slope is 1, a_k = 1/k gives k times the mean squared error the noise's variance."""
    method = RobbinsMonro(function="linear", start=0.0, noise=2.0, steps=100)
    squares = [(float(found(method, seed=seed)[0].w) - 10) ** 2 for seed in range(600)]
    assert 100 * np.mean(squares) == pytest.approx(4.0, rel=0.2)


def test_a_constant_step_never_settles_and_follows() -> None:
    """Its mean squared error stays at a / (2 - a) times the noise's variance."""
    method = RobbinsMonro(function="linear", start=10.0, noise=1.0, step_size=StepSize(start=0.2), steps=200)
    _, told = found(method, turns=300)
    assert np.mean([t["error"] ** 2 for t in told[1:]]) == pytest.approx(0.2 / 1.8, rel=0.3)
    assert not method.step_size.settles
    assert StepSize(kind="harmonic").settles


def test_steps_that_are_too_long_for_a_steep_function_are_told() -> None:
    with pytest.raises(RunError, match="step"):
        found(RobbinsMonro(function="cubic", start=10.0, steps=50))


def test_step_sizes() -> None:
    assert [StepSize(start=0.3).at(k) for k in (1, 9)] == [0.3, 0.3]
    assert [StepSize(kind="harmonic").at(k) for k in (1, 4)] == [1.0, 0.25]
    assert StepSize(kind="polynomial", start=2.0, power=1.0).at(8) == 0.25
    assert StepSize(kind="polynomial", start=2.0, power=0.75).at(16) == pytest.approx(0.25)
    for power in (0.5, 1.1):
        with pytest.raises(ValueError, match="power"):
            StepSize(kind="polynomial", power=power)


def test_a_regressions_weights_are_found() -> None:
    method = StochasticGradient(
        problem="regression",
        solution=(1.0, -2.0, 0.5),
        noise=0.1,
        batch=4,
        steps=5000,
        step_size=StepSize(kind="polynomial", start=0.5),
    )
    agent, told = found(method)
    np.testing.assert_allclose(agent.w.detach(), [1.0, -2.0, 0.5], atol=0.01)
    assert told[0]["error"] == pytest.approx(math.dist(agent.w.tolist(), [1.0, -2.0, 0.5]))
    assert told[0]["loss"] == pytest.approx(told[0]["error"] ** 2 / 2)


def test_a_batchs_noise_is_smaller_by_its_size() -> None:
    def spread(batch: int) -> float:
        method = StochasticGradient(solution=(0.0,), batch=batch, steps=1, step_size=StepSize(start=1.0))
        return float(np.var([float(found(method, seed=seed)[0].w) for seed in range(500)]))

    assert spread(1) == pytest.approx(1.0, rel=0.2)
    assert spread(25) == pytest.approx(1 / 25, rel=0.2)


def test_it_has_no_use_for_an_environment() -> None:
    agent, _ = found(RobbinsMonro())
    method = RobbinsMonro()
    method.check(Spaces(Discrete(3), Discrete(2)))
    with pytest.raises(UnsupportedError, match="act"):
        agent.act(agent.w, None)
    with pytest.raises(ValueError, match="2 numbers"):
        StochasticGradient(start=(1.0, 2.0), solution=(1.0,))
