"""Continuous normalizing flows: densities that are those of the map, whichever way they are had."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from danlu.config import Config
from danlu.density import Rows, Space
from danlu.errors import ConvergenceError
from danlu.method.cnf import CNF
from danlu.parts.continuous import ContinuousFlow
from danlu.parts.network import MLP

from .fields import grid, rows_of, shaken, some, trained

SPACES = [Space((2,)), Space((3,), classes=3), Space((2,), features=2), Space((1, 2, 2))]
SMALL = MLP(hidden=(8, 8), initial="uniform")


def made(space: Space, network: Config = SMALL, *, by: float = 0.3, **fields: object) -> tuple[CNF, ContinuousFlow]:
    method = CNF(**fields)  # type: ignore[arg-type]
    density = method.density(space, network, seed=1)
    shaken(density, by=by)
    return method, density


def standard_normal(z: Tensor) -> Tensor:
    return -0.5 * z.flatten(1).square().sum(1) - z[0].numel() * math.log(2 * math.pi) / 2


def test_it_begins_with_noise_as_it_is() -> None:
    density = CNF().density(Space((3,)), None, 0)
    z = torch.randn(4, 3)
    assert torch.equal(density.decode(z), z)
    torch.testing.assert_close(density.log_prob(z), standard_normal(z))


@pytest.mark.parametrize("hidden", [(8,), (8, 8), (8, 8, 8)], ids=str)
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_the_density_is_that_of_the_map(space: Space, hidden: tuple[int, ...]) -> None:
    _, density = made(space, MLP(hidden=hidden, initial="uniform"), tolerance=1e-9)
    density.double()
    rows = rows_of(3, space)
    x, context = rows.x.double(), space.vector(rows.condition)
    context = None if context is None else context.double()
    z = density.encode(x, context)
    torch.testing.assert_close(density.decode(z, context), x, rtol=1e-7, atol=1e-7)

    def one(x: Tensor, i: int) -> Tensor:
        return density.encode(x.view(1, *space.shape), None if context is None else context[i : i + 1]).flatten()

    maps = [torch.autograd.functional.jacobian(lambda x, i=i: one(x, i), x[i].flatten()) for i in range(3)]
    expected = standard_normal(z) + torch.stack([m.slogdet().logabsdet for m in maps])
    torch.testing.assert_close(density.log_prob(x, context), expected, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(density.log_prob(x, context), expected, rtol=1e-6, atol=1e-6)
    assert density.evaluations >= 13
    stages = density.path(z, context)
    assert len(stages) == 31
    torch.testing.assert_close(stages[0], z)
    torch.testing.assert_close(stages[-1], x, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("activation", ["silu", "tanh", "elu"])
def test_it_is_zukos_under_copied_weights(activation: str) -> None:
    """Whose time runs the other way: f(t, x) = - f_zuko(1 - t, x), and cos k pi (1 - t) = (-1)^k cos k pi t."""
    zuko = pytest.importorskip("zuko")
    network = MLP(hidden=(16, 16), activation=activation, initial="uniform")  # type: ignore[arg-type]
    _, density = made(Space((3,)), network, tolerance=1e-8)
    kinds = {"silu": torch.nn.SiLU, "tanh": torch.nn.Tanh, "elu": torch.nn.ELU}
    flow = zuko.flows.CNF(3, 0, hidden_features=(16, 16), activation=kinds[activation], atol=1e-8, rtol=1e-8)
    ours, theirs = list(density.field.network.parameters()), list(flow.transform.ode.parameters())
    turned = torch.tensor([-1.0, 1.0, -1.0])
    with torch.no_grad():
        of_x, cosines, sines = ours[0].split(3, 1)
        theirs[0].copy_(torch.cat([cosines * turned, sines * -turned, of_x], 1))
        for one, other in zip(ours[1:-2], theirs[1:-2], strict=True):
            other.copy_(one)
        theirs[-2].copy_(-ours[-2])
        theirs[-1].copy_(-ours[-1])
    density.double()
    flow.double()
    x = rows_of(8, Space((3,))).x.double()
    found, expected = density.log_prob(x), flow().log_prob(x)
    torch.testing.assert_close(density.encode(x), flow().transform(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    if activation == "elu":  # its slope's slope jumps, and no step's gradient is close there
        return
    (slope,), (other,) = (torch.autograd.grad(f.sum(), [w]) for f, w in ((found, ours[2]), (expected, theirs[2])))
    torch.testing.assert_close(slope, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun", "dopri5"])
@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
def test_a_linear_field_gives_a_normal_distribution(solver: str, trace: str) -> None:
    steps = 4000 if solver == "euler" else 200
    _, density = made(Space((2,)), MLP(hidden=()), solver=solver, steps=steps, trace=trace)
    a = torch.tensor([[0.5, -0.8], [0.3, -0.4]], dtype=torch.float64)
    density.double()
    with torch.no_grad():
        weight, bias = density.field.network.parameters()
        weight.zero_()
        weight[:, :2] = a
        bias.copy_(torch.tensor([0.3, 0.0]))
    spread = torch.linalg.matrix_exp(a)
    big = torch.zeros(3, 3, dtype=torch.float64)
    big[:2, :2], big[0, 2] = a, 0.3
    shift = torch.linalg.matrix_exp(big)[:2, 2]
    law = torch.distributions.MultivariateNormal(shift, spread @ spread.T)
    x = torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = density.log_prob(x).detach()
    if trace == "exact":
        torch.testing.assert_close(found, law.log_prob(x), rtol=0, atol=2e-3 if solver == "euler" else 1e-4)
        torch.testing.assert_close(
            density.decode(density.encode(x)), x, rtol=0, atol=2e-3 if solver == "euler" else 1e-4
        )
    else:  # v^T A v takes two values, whose mean is the trace
        errors = (found - law.log_prob(x)).abs()
        off = float((a[0, 1] + a[1, 0]).abs())
        torch.testing.assert_close(errors, torch.full_like(errors, off), rtol=0, atol=5e-3)


def test_the_density_integrates_to_one() -> None:
    _, density = made(Space((2,)), by=0.5)
    points, area = grid(6.0, 121)
    with torch.no_grad():
        mass = density.log_prob(points).exp() * area
    assert float(mass.sum()) == pytest.approx(1, abs=2e-3)
    noise = standard_normal(points).exp() * area
    assert float((mass - noise).abs().sum()) > 0.5, "it is not the noise itself"


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
@pytest.mark.parametrize("space", SPACES[:3], ids=str)
def test_the_adjoint_equations_gradient_is_that_through_the_steps(space: Space, trace: str) -> None:
    pytest.importorskip("torchdiffeq")
    rows = rows_of(6, space)
    found = []
    for adjoint in (False, True):
        method, density = made(space, adjoint=adjoint, trace=trace, tolerance=1e-6)
        outcome = method.fit(density, rows)
        found.append((outcome.losses["nll"], torch.autograd.grad(outcome.losses["nll"], list(density.parameters()))))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-3)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("trace", ["exact", "hutchinson"])
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_loss_does_not_depend_on_the_pack(space: Space, trace: str) -> None:
    method, density = made(space, solver="midpoint", steps=4, trace=trace)
    rows = rows_of(9, space)
    whole = method.fit(density, rows)
    parts = [method.fit(density, some(rows, slice(0, 4))), method.fit(density, some(rows, slice(4, 9)))]
    torch.testing.assert_close(whole.losses["nll"], sum(p.losses["nll"] for p in parts), rtol=1e-5, atol=1e-4)
    assert float(whole.metrics["evaluations"]) == 9 * 8 == sum(float(p.metrics["evaluations"]) for p in parts)
    assert method.counts(rows) == {"nll": 9.0, "evaluations": 9.0}
    if trace == "hutchinson":
        assert not torch.equal(method.fit(density, rows.keyed(11)).losses["nll"], whole.losses["nll"])
        x, context = rows.x, space.vector(rows.condition)
        again = density.log_prob(x[3:5], None if context is None else context[3:5])
        torch.testing.assert_close(density.log_prob(x, context)[3:5], again, rtol=1e-5, atol=1e-5)


def test_what_a_row_is_conditioned_on_counts() -> None:
    space = Space((2,), classes=2)
    _, density = made(space, by=0.5)
    x = rows_of(5, space).x
    classes = [space.vector(torch.full((5,), c)) for c in (0, 1)]
    with torch.no_grad():
        likely = [density.log_prob(x, c) for c in classes]
        made_ = [density.decode(x, c) for c in classes]
    assert (likely[0] - likely[1]).abs().min() > 1e-3
    assert (made_[0] - made_[1]).abs().max() > 1e-2


def test_it_learns_a_normal_distribution() -> None:
    """The likelihood comes to the data's own: minus their entropy."""
    space, spread = Space((2,)), torch.tensor([[0.5, 0.0], [0.6, 0.3]])

    def draw(step: int) -> Rows:
        rows = rows_of(128, space, seed=step)
        return Rows(rows.x @ spread.T, None, rows.sample, rows.key, rows.parts, rows.log_det)

    method = CNF(tolerance=1e-3)
    density = method.density(space, MLP(hidden=(16, 16), initial="uniform"), 1)
    trained(method, density, draw, 150, 2e-2)
    test = draw(9999).x
    law = torch.distributions.MultivariateNormal(torch.zeros(2), spread @ spread.T)
    with torch.no_grad():
        assert float(density.log_prob(test).mean()) == pytest.approx(float(law.log_prob(test).mean()), abs=0.05)


def test_a_field_too_steep_to_follow_is_one_sentence() -> None:
    space = Space((2,))
    method, density = made(space, by=300.0)
    with pytest.raises(ConvergenceError) as told:
        method.fit(density, rows_of(4, space))
    assert str(told.value).startswith("method.solver: the equation was not followed beyond t = ")
    assert "Loosen method.tolerance or take a solver of fixed steps" in str(told.value)
