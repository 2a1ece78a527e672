"""NICE: shifts keep volumes, and the scaling's is the same everywhere."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import AffineTransform, SigmoidTransform, TransformedDistribution, Uniform

from danlu.density import Rows, Space
from danlu.method.nice import NICE
from danlu.parts.coupling import Coupling
from densities import SMALL, disturbed, rows_of


def scaled(prior: str = "logistic") -> Coupling:
    density = NICE.model_validate({"steps": 4, "prior": prior}).density(Space((5,)), SMALL, 0)
    assert isinstance(density, Coupling)
    disturbed(density)
    return density


def test_the_log_determinant_is_the_sum_of_the_log_scales_everywhere() -> None:
    density, x = scaled(), rows_of(Space((5,)), 6).x
    z, log_det = density(x)
    torch.testing.assert_close(log_det, density.log_scale.sum().expand(6))
    _, h, *_ = density.path(z)
    torch.testing.assert_close(z, h * density.log_scale.exp())


def test_the_first_coupling_leaves_every_other_number_as_it_was() -> None:
    density, x = scaled(), rows_of(Space((5,)), 4).x
    *_, between, made = density.path(density.encode(x).detach())
    torch.testing.assert_close(made, x)
    torch.testing.assert_close(between[:, 0::2], x[:, 0::2])
    assert not torch.isclose(between[:, 1::2], x[:, 1::2]).any()


def test_the_logistic_prior_is_that_of_torch() -> None:
    one = torch.ones((), dtype=torch.float64)
    logistic = TransformedDistribution(Uniform(0 * one, one), [SigmoidTransform().inv, AffineTransform(0 * one, one)])
    density, x = scaled(), rows_of(Space((5,)), 6).x
    z, log_det = density(x)
    torch.testing.assert_close(density.log_prob(x), logistic.log_prob(z).sum(1) + log_det)


@pytest.mark.parametrize(("prior", "fourth"), [("logistic", 4.2), ("normal", 3.0)])
def test_noise_is_distributed_as_the_prior_says(prior: str, fourth: float) -> None:
    """By its fourth moment over its squared variance: 4.2 of the logistic distribution, 3 of the normal one."""
    density = scaled(prior)
    keys = Rows.of(torch.zeros(40000, 5), None, torch.arange(40000)).keys
    z = density.noise(keys).double().flatten()
    assert abs(float(z.mean())) < 0.02
    assert float((z**4).mean() / z.var() ** 2) == pytest.approx(fourth, abs=0.15)
    if prior == "logistic":
        assert float(z.var()) == pytest.approx(torch.pi**2 / 3, rel=0.02)
