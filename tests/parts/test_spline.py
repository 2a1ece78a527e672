"""Rational-quadratic splines, against what their definition says of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from danlu.parts.spline import LEAST, RationalQuadratic

BINS, BOUND = 5, 2.0


def told(num: int = 7, size: int = 3, scale: float = 2.0) -> Tensor:
    chance = torch.Generator().manual_seed(0)
    return scale * torch.randn(size * (3 * BINS - 1), num, generator=chance, dtype=torch.float64)


def places(num: int = 7, size: int = 3, scale: float = 1.0) -> Tensor:
    chance = torch.Generator().manual_seed(1)
    return scale * torch.randn(size, num, generator=chance, dtype=torch.float64)


def knots(said: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the pieces of one curve meet, and the slopes there, straight from the paper."""
    sizes = [2 * BOUND * (LEAST + (1 - LEAST * BINS) * part.softmax(0)) for part in said[BINS - 1 :].view(2, BINS)]
    x, y = (torch.cat([torch.zeros(1).double(), size]).cumsum(0) - BOUND for size in sizes)
    inner = torch.nn.functional.softplus(said[: BINS - 1] + torch.tensor(1 - LEAST).double().expm1().log()) + LEAST
    return x, y, torch.cat([torch.ones(1).double(), inner, torch.ones(1).double()])


def test_it_goes_through_its_knots_with_their_slopes() -> None:
    spline, said = RationalQuadratic(BINS, BOUND), told(1, 1)
    x, y, slopes = knots(said[:, 0])
    made, log_slope = spline.forward(x[None], said.expand(-1, len(x)).contiguous(), None)
    torch.testing.assert_close(made[0], y)
    torch.testing.assert_close(log_slope.exp()[0], slopes, rtol=1e-6, atol=1e-6)


def test_it_rises_everywhere_and_is_the_identity_outside() -> None:
    spline, said = RationalQuadratic(BINS, BOUND), told(1, 1)
    x = torch.linspace(-3, 3, 2001, dtype=torch.float64)[None]
    y, log_slope = spline.forward(x, said.expand(-1, 2001).contiguous(), None)
    assert (y.diff() > 0).all()
    outside = x.abs() > BOUND
    assert torch.equal(y[outside], x[outside])
    assert not log_slope[outside].any()
    assert log_slope[~outside].any()


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_the_inverse_is_one_inside_and_outside(scale: float) -> None:
    spline, said, x = RationalQuadratic(BINS, BOUND), told(), places(scale=scale)
    y, _ = spline.forward(x, said, None)
    torch.testing.assert_close(spline.inverse(y, said), x)


def test_zeros_are_the_identity() -> None:
    spline, x = RationalQuadratic(BINS, BOUND), places(scale=2.0)
    y, log_slope = spline.forward(x, torch.zeros_like(told()), None)
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(log_slope, torch.zeros_like(x))


def test_extreme_curves_stay_finite_in_float32() -> None:
    """Pieces as narrow and as steep as they get, and numbers at the bounds and far outside."""
    spline = RationalQuadratic(BINS, BOUND)
    said = told(scale=100.0).float()
    for x in (
        places(scale=1.0).float(),
        torch.full((3, 7), BOUND),
        torch.full((3, 7), -BOUND),
        torch.full((3, 7), 1e6),
    ):
        saved: list[Tensor] = []
        y, log_slope = spline.forward(x, said.clone(), saved)
        d_x, d_said = spline.backward(torch.ones_like(x), torch.ones(7), saved)
        back = spline.inverse(y, said)
        assert all(tensor.isfinite().all() for tensor in (y, log_slope, d_x, d_said, back))
        assert not saved


def test_written_out_gradients_are_those_of_autograd() -> None:
    spline, said, x = RationalQuadratic(BINS, BOUND), told().requires_grad_(), places(scale=2.0).requires_grad_()
    y, log_slope = spline.forward(x, said, None)
    d_y = torch.linspace(-1, 2, x.numel(), dtype=torch.float64).view_as(x)
    d_log = torch.linspace(2, -1, x.shape[1], dtype=torch.float64)
    wanted = torch.autograd.grad((y * d_y + log_slope * d_log).sum(), [x, said])
    with torch.no_grad():
        saved: list[Tensor] = []
        again, _ = spline.forward(x.detach(), said.detach(), saved)
        torch.testing.assert_close(again, y.detach())
        for a, b in zip(spline.backward(d_y, d_log, saved), wanted, strict=True):
            torch.testing.assert_close(a, b)
        torch.testing.assert_close(spline.inverse(again, said.detach()), x.detach())
