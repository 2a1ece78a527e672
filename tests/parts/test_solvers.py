"""Ways to follow an equation: their order, on one that is solved; their gradient; and what they say when they fail."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from danlu.errors import ConvergenceError, UnsupportedError
from danlu.parts import solver_gradients
from danlu.parts.solver_gradients import adjoint, retraced
from danlu.parts.solvers import Scheme, Solver

ORDERS: list[tuple[Scheme, float]] = [("euler", 1), ("midpoint", 2), ("heun", 2)]
SCHEMES: list[Scheme] = ["euler", "midpoint", "heun", "dopri5"]


def slope(t: float, z: Tensor) -> Tensor:
    """z' = z cos t, which leads to `solved`."""
    return z * math.cos(t)


def solved(z: Tensor, start: float, end: float) -> Tensor:
    return z * math.exp(math.sin(end) - math.sin(start))


def logistic(t: float, z: Tensor) -> Tensor:
    """z' = z (1 - z), which leads to `grown`."""
    return z * (1 - z)


def grown(z: Tensor, span: float) -> Tensor:
    return 1 / (1 + (1 / z - 1) * math.exp(-span))


Z = torch.tensor([[0.2, 0.9], [1.7, 0.5], [3.0, 0.1]], dtype=torch.float64)


@pytest.mark.parametrize(("scheme", "order"), ORDERS)
@pytest.mark.parametrize(("start", "end"), [(0.0, 2.0), (2.0, 0.5)])
def test_the_error_falls_with_the_order_that_is_promised(
    scheme: Scheme, order: float, start: float, end: float
) -> None:
    for f, z, exact in ((slope, Z, solved(Z, start, end)), (logistic, Z / 4, grown(Z / 4, end - start))):
        errors = [float((Solver(scheme, n).solve(f, z, start, end).z - exact).abs().max()) for n in (40, 80, 160, 320)]
        measured = [math.log2(a / b) for a, b in pairwise(errors)]
        assert abs(measured[-1] - order) < 0.1, measured


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize(("start", "end"), [(0.0, 2.0), (2.0, 0.5)])
def test_dopri5_keeps_its_tolerance_and_asks_for_no_more(tolerance: float, start: float, end: float) -> None:
    solver = Solver("dopri5", tolerance=tolerance)
    for f, z, exact in ((slope, Z, solved(Z, start, end)), (logistic, Z / 4, grown(Z / 4, end - start))):
        there, asked = solver.solve(f, z, start, end)
        error = float((there - exact).abs().max())
        assert error < 5 * tolerance
        assert error > 1e-4 * tolerance, "steps are as long as the tolerance lets them be"
        assert 13 <= asked < 400


def test_the_fifth_order_shows() -> None:
    few, many = (Solver("dopri5", tolerance=tol).solve(slope, Z, 0.0, 6.0).evaluations for tol in (1e-5, 1e-10))
    assert 5 < many / few < 15  # 10^(5 / 5) is ten


def test_it_steps_as_torchdiffeqs_does() -> None:
    peer = pytest.importorskip("torchdiffeq")
    times = torch.tensor([0.0, 3.0], dtype=torch.float64)
    theirs = peer.odeint(lambda t, z: slope(float(t), z), Z, times, rtol=1e-11, atol=1e-11, method="dopri5")[-1]
    ours = Solver("dopri5", tolerance=1e-11).solve(slope, Z, 0.0, 3.0).z
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for scheme, name in (("euler", "euler"), ("midpoint", "midpoint"), ("heun", "heun2")):
        grid = {"step_size": 3.0 / 16}
        theirs = peer.odeint(lambda t, z: slope(float(t), z), Z, times, method=name, options=grid)[-1]
        ours = Solver(scheme, 16).solve(slope, Z, 0.0, 3.0).z  # type: ignore[arg-type]
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_question_is_counted(scheme: Scheme) -> None:
    asked = 0

    def f(t: float, z: Tensor) -> Tensor:
        nonlocal asked
        asked += 1
        return slope(t, z)

    assert Solver(scheme, 7).solve(f, Z, 0.0, 1.0).evaluations == asked
    asked = 0
    stages, counted = Solver(scheme, 7).stages(f, Z, 0.0, 1.0, 5)
    assert (len(stages), counted) == (5, asked)
    assert scheme == "dopri5" or asked == 7 * (1 if scheme == "euler" else 2)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("num", [2, 5, 8, 31])
def test_stages_begin_and_end_where_the_solution_does(scheme: Scheme, num: int) -> None:
    solver = Solver(scheme, 7, tolerance=1e-9)
    stages, _ = solver.stages(slope, Z, 0.5, 2.0, num)
    assert len(stages) == (num if scheme == "dopri5" else min(num, 8))
    assert torch.equal(stages[0], Z)
    torch.testing.assert_close(stages[-1], solver.solve(slope, Z, 0.5, 2.0).z, rtol=1e-8, atol=1e-8)
    if scheme == "dopri5":
        for i, stage in enumerate(stages):
            torch.testing.assert_close(stage, solved(Z, 0.5, 0.5 + 1.5 * i / (num - 1)), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_gradient_is_that_of_the_solution(scheme: Scheme) -> None:
    rate, z = torch.tensor(0.7, dtype=torch.float64, requires_grad=True), Z.clone().requires_grad_()
    solver = Solver(scheme, 400, tolerance=1e-9)
    end = solver.solve(lambda t, z: rate * slope(t, z), z, 0.0, 2.0).z
    ours = torch.autograd.grad(end.square().sum(), [rate, z])
    exact = (z * (rate * math.sin(2.0)).exp()).square().sum()
    for one, other in zip(ours, torch.autograd.grad(exact, [rate, z]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2 if scheme == "euler" else 1e-4, atol=0)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_steps_that_are_taken_again_have_the_same_gradient(scheme: Scheme) -> None:
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    unused, z = torch.ones((), requires_grad=True), Z.clone().requires_grad_()
    twice, once = 2 * rate, 1 * rate  # made of a weight, and what f is given of it

    def f(t: float, z: Tensor) -> Tensor:
        return twice * slope(t, z) - 0.1 * (once * z).sin()

    solver = Solver(scheme, 9, tolerance=1e-6)
    kept, again = solver.solve(f, z, 1.5, 0.0), retraced(solver, f, z, 1.5, 0.0, [once, twice, unused])
    assert again.evaluations == kept.evaluations
    assert torch.equal(again.z, kept.z)
    ours = torch.autograd.grad(again.z.sin().sum(), [rate, z, unused], retain_graph=True)
    for one, other in zip(ours, torch.autograd.grad(kept.z.sin().sum(), [rate, z]), strict=False):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert not ours[2]
    with torch.no_grad():
        assert torch.equal(retraced(solver, f, z, 1.5, 0.0, [rate]).z, kept.z)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_adjoint_equations_gradient_is_the_same(scheme: Scheme) -> None:
    pytest.importorskip("torchdiffeq")
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    z = Z.clone().requires_grad_()
    solver = Solver(scheme, 2000 if scheme == "euler" else 200, tolerance=1e-9)

    def f(t: float, z: Tensor) -> Tensor:
        return rate * slope(t, z) - 0.1 * z * z

    direct = solver.solve(f, z, 1.5, 0.0)
    backwards = adjoint(solver, f, z, 1.5, 0.0, [rate])
    torch.testing.assert_close(backwards.z, direct.z, rtol=1e-7, atol=1e-7)
    assert backwards.evaluations > 10
    gradients = [torch.autograd.grad(end.z.square().sum(), [rate, z]) for end in (direct, backwards)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=5e-3 if scheme == "euler" else 1e-4, atol=1e-6)


def escaping(t: float, z: Tensor) -> Tensor:
    """z' = z^2 from 1 is at infinity at t = 1."""
    return z * z


def test_an_equation_that_cannot_be_followed_is_one_sentence() -> None:
    one = torch.ones(2, 1)
    with pytest.raises(ConvergenceError, match=r"beyond t = (1|0\.9\d*) at a tolerance of 1e-05: .*Loosen method.tol"):
        Solver("dopri5").solve(escaping, one, 0.0, 2.0)
    with pytest.raises(ConvergenceError, match=r"its steps vanish|evaluations do not lead"):
        Solver("dopri5").solve(lambda t, z: z.sign() * 1e9 * (t > 0.5), one, 0.0, 1.0)
    with pytest.raises(ConvergenceError, match=r"the field is not finite there"):
        Solver("dopri5").solve(lambda t, z: z / 0, one, 0.0, 1.0)
    with pytest.raises(ConvergenceError, match=r"\d+ evaluations do not lead to the end"):
        Solver("dopri5", most=50).solve(lambda t, z: (z * 0 + 200 * t).sin() * 100, one, 0.0, 1.0)
    with pytest.raises(
        ConvergenceError, match=r"^method.solver: what 64 steps of euler arrive at is not finite\. Take"
    ):
        Solver("euler", 64).solve(escaping, one, 0.0, 8.0)


def test_the_adjoint_says_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchdiffeq")
    one = torch.ones(2, 1)
    with pytest.raises(ConvergenceError, match=r"the equation was not followed.*Loosen method.tolerance"):
        adjoint(Solver("dopri5"), escaping, one, 0.0, 2.0, [])
    monkeypatch.setattr(solver_gradients, "_MISSING", True)
    with pytest.raises(UnsupportedError, match=r"torchdiffeq, which is not installed. Install it with `pip install"):
        adjoint(Solver("dopri5"), escaping, one, 0.0, 0.5, [])
