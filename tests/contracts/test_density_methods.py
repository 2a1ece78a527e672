"""What every method that learns a distribution of rows keeps to."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from danlu.density import Density, DensityMethod, Rows, Space
from danlu.errors import UnsupportedError
from danlu.method.maximum_likelihood import MaximumLikelihood
from danlu.parts.flow import Flow
from danlu.parts.prior import StandardNormal
from danlu.registry import exported, lookup
from densities import SMALL, context_of, disturbed, gradients, rows_of, volumes

METHODS = [entry.name for entry in exported("method") if issubclass(entry.target, DensityMethod)]
FIELDS: dict[str, dict[str, Any]] = {
    "nice": {"steps": 3},
    "realnvp": {"steps": 3, "channels": 4, "blocks": 1},
    "maf": {"steps": 3},
    "spline_coupling": {"steps": 3},
}
"""Fields with which a method is small, where it is not by itself."""
CLOSELY: dict[str, dict[str, Any]] = {"cnf": {"tolerance": 1e-8}, "flow_matching": {"tolerance": 1e-8}}
"""Fields with which a method solves as closely as float64 lets it."""
SPACES = {
    "plain": Space((3,)),
    "two": Space((2,)),
    "classes": Space((3,), classes=3),
    "features": Space((4,), features=2),
    "image": Space((1, 4, 4)),
    "image of a class": Space((2, 4, 2), classes=2),
}
CASES = [(name, space) for name in METHODS for space in SPACES]
FITTED = [name for name in METHODS if issubclass(lookup("method", name), MaximumLikelihood)]
SAID = [name for name in METHODS if lookup("method", name)().density(Space((2,)), SMALL, 0).likelihood == "exact"]


def made(name: str, space: str, seed: int = 0, **fields: Any) -> tuple[DensityMethod, Density]:
    method: DensityMethod = lookup("method", name)(**{**FIELDS.get(name, {}), **fields})
    shape = SPACES[space]
    if len(shape.shape) == 3 and not method.takes_images:
        shape = replace(shape, shape=(shape.size,))
    network = None if len(shape.shape) == 3 else SMALL
    return method, method.density(shape, network, seed)


def moved(name: str, space: str, **fields: Any) -> tuple[DensityMethod, Density]:
    """The same away from where it begins, in float64."""
    method, density = made(name, space, **fields)
    disturbed(density, scale=0.1 if len(density.space.shape) == 3 else 0.3)
    return method, density


def tolerance(method: DensityMethod) -> float:
    """How far what is solved may be from what is exact."""
    return 1e-8 if method.one_step else 1e-5


def near(a: Tensor, b: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", METHODS)
def test_every_field_is_documented_beside_it(name: str) -> None:
    kind = lookup("method", name)
    assert all(field.description for field in kind.model_fields.values())
    assert kind.mechanism


@pytest.mark.parametrize(("name", "space"), CASES)
def test_rows_come_back_from_the_noise_they_are_made_of(name: str, space: str) -> None:
    method, density = moved(name, space, **CLOSELY.get(name, {}))
    rows = rows_of(density.space, 5)
    context = context_of(density.space, rows)
    with torch.no_grad():
        z = density.encode(rows.x, context)
        assert z.shape == rows.x.shape
        assert not torch.allclose(z, rows.x, atol=1e-2)
        if density.likelihood == "exact":
            near(density.decode(z, context), rows.x, tolerance(method))
            near(density.encode(density.decode(rows.x, context), context), rows.x, tolerance(method))


@pytest.mark.parametrize(("name", "space"), CASES)
def test_a_likelihood_that_is_exact_is_that_of_the_noise_times_the_volume(name: str, space: str) -> None:
    method, density = moved(name, space, **CLOSELY.get(name, {}))
    if density.likelihood != "exact":
        pytest.skip("it says none, or a bound")
    rows = rows_of(density.space, 3)
    context = context_of(density.space, rows)
    z = density.encode(rows.x, context).detach().flatten(1)
    prior = density.prior if isinstance(density, Flow) else StandardNormal()
    wanted = prior.log_prob(z) + volumes(density.encode, rows.x, context)
    near(density.log_prob(rows.x, context).detach(), wanted, tolerance(method))


@pytest.mark.parametrize(("name", "space"), CASES)
def test_the_path_leads_from_noise_to_rows(name: str, space: str) -> None:
    method, density = moved(name, space, **CLOSELY.get(name, {}))
    rows = rows_of(density.space, 4)
    context = context_of(density.space, rows)
    with torch.no_grad():
        path = density.path(rows.x, context)
        assert len(path) > 2
        assert all(stage.shape == rows.x.shape and torch.isfinite(stage).all() for stage in path)
        near(path[0], rows.x, 0.0)
        near(path[-1], density.decode(rows.x, context), tolerance(method))
        assert all(not torch.equal(a, b) for a, b in pairwise(path))


def part_of(rows: Rows, start: int, stop: int) -> Rows:
    """Some rows as one group."""
    some = slice(start, stop)
    return replace(
        rows,
        x=rows.x[some],
        condition=None if rows.condition is None else rows.condition[some],
        sample=rows.sample[some],
        log_det=None if rows.log_det is None else rows.log_det[some],
        parts=(stop - start,),
    )


def single(rows: Rows) -> Rows:
    """The same in float32, as an engine has it."""
    condition = rows.condition
    if condition is not None and condition.is_floating_point():
        condition = condition.float()
    return replace(rows, x=rows.x.float(), condition=condition, log_det=torch.arange(float(len(rows))))


@pytest.mark.parametrize(("name", "space"), CASES)
def test_what_is_fitted_adds_up_over_groups(name: str, space: str) -> None:
    method, density = moved(name, space)
    density.float()
    rows = single(rows_of(density.space, 7).keyed(5))
    whole = method.fit(density, replace(rows, parts=(3, 4)))
    groups = [method.fit(density, part_of(rows, 0, 3)), method.fit(density, part_of(rows, 3, 7))]
    assert set(whole.losses) | set(whole.metrics) == set(method.terms)
    assert method.counts(rows) == dict.fromkeys(method.terms, 7.0)
    assert whole.losses
    assert all(value.requires_grad for value in whole.losses.values())
    for kind in ("losses", "metrics") if method.one_step else ("losses",):  # what solving takes depends on the pack
        together, *apart = (getattr(one, kind) for one in (whole, *groups))
        for term, value in together.items():
            near(value.detach(), sum(part[term].detach() for part in apart), 1e-4 if method.one_step else 1e-2)
    for parameter, gradient in gradients(density, sum(whole.losses.values())).items():
        assert torch.isfinite(gradient).all(), parameter
        assert gradient.any(), parameter


@pytest.mark.parametrize("name", FITTED)
def test_how_rows_were_spread_out_is_part_of_what_is_fitted(name: str) -> None:
    method, density = made(name, "plain")
    plain = replace(single(rows_of(density.space, 4).keyed(1)), log_det=torch.zeros(4))
    spread = replace(plain, log_det=torch.tensor([1.0, 2.0, 3.0, -0.5]))
    sums = [float(sum(method.fit(density, one).losses.values()).detach()) for one in (plain, spread)]
    assert sums[0] - sums[1] == pytest.approx(5.5, abs=1e-4)
    wanted = -float(density.log_prob(plain.x).sum().detach())
    assert method.summarize({"loss": sums[0]})["nll"] == sums[0] == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize(("name", "space"), CASES)
def test_everything_follows_from_the_seed_and_the_keys(name: str, space: str) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    method, density = made(name, space, seed=3)
    again, other = made(name, space, seed=3)[1], made(name, space, seed=4)[1]
    state, states = density.state_dict(), [again.state_dict(), other.state_dict()]
    assert all(torch.equal(tensor, states[0][key]) for key, tensor in state.items())
    assert any(not torch.equal(tensor, states[1][key]) for key, tensor in state.items())
    rows = single(rows_of(density.space, 6).keyed(2))
    sums = [sum(method.fit(one, rows).losses.values()).detach() for one in (density, again)]
    assert torch.equal(*sums)
    noise = density.noise(rows.keys)
    assert noise.shape == rows.x.shape
    assert torch.equal(noise, again.noise(rows.keys))
    assert torch.equal(noise[2:4], density.noise(rows.keys[2:4]))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("space", ["classes", "features", "image of a class"])
def test_what_rows_are_conditioned_on_matters(name: str, space: str) -> None:
    _, density = moved(name, space)
    rows = rows_of(density.space, 5)
    condition = rows.condition
    assert condition is not None
    other = (condition + 1) % density.space.classes if density.space.classes else condition + 1
    contexts = [context_of(density.space, replace(rows, condition=one)) for one in (condition, other)]
    with torch.no_grad():
        a, b = (density.decode(rows.x, context) for context in contexts)
        assert ((a - b).abs().flatten(1).amax(1) > 1e-3).all()
        if density.likelihood != "none":
            a, b = (density.log_prob(rows.x, context) for context in contexts)
            assert ((a - b).abs() > 1e-4).all()


@pytest.mark.parametrize("name", METHODS)
def test_rows_too_short_for_it_are_refused(name: str) -> None:
    method = lookup("method", name)()
    for size in range(1, method.least):
        with pytest.raises(UnsupportedError, match="a row here has"):
            method.density(Space((size,)), None, 0)
    assert method.density(Space((method.least,)), SMALL, 0).space.size == method.least


@pytest.mark.parametrize("name", SAID)
def test_at_the_start_it_is_a_sane_distribution(name: str) -> None:
    """In float32, with its own default network: samples are finite, and about as wide as the noise."""
    density = lookup("method", name)().density(Space((2,)), None, 0)
    with torch.no_grad():
        z = density.noise(Rows.of(torch.zeros(256, 2), None, torch.arange(256)).keys)
        x = density.decode(z)
        assert torch.isfinite(density.log_prob(x)).all()
        assert 0.3 < float(x.std()) < 3
        near(density.encode(x), z, 2e-3)
