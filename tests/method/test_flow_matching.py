"""Flow matching: what its loss is least at, what its rows are spread like, and how likely they are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from danlu.config import Config
from danlu.density import Rows, Space
from danlu.errors import UnsupportedError
from danlu.method.flow_matching import FlowMatching
from danlu.parts.continuous import ContinuousFlow
from danlu.parts.network import MLP, Patches, UNet

from .fields import Known, grid, rows_of, shaken, some, sums_and_slopes, trained

SPACES = [Space((2,)), Space((3,), classes=3), Space((2,), features=2), Space((1, 2, 2))]
SMALL = MLP(hidden=(8, 8), activation="silu", initial="uniform")
MEAN, SPREAD = 0.7, 0.4


def made(
    space: Space, network: Config = SMALL, *, by: float = 0.3, **fields: object
) -> tuple[FlowMatching, ContinuousFlow]:
    method = FlowMatching(**fields)  # type: ignore[arg-type]
    density = method.density(space, network, seed=1)
    shaken(density, by=by)
    return method, density


def normal_rows(num: int, seed: int, size: int = 1) -> Rows:
    """Rows from N(MEAN, SPREAD^2)."""
    rows = rows_of(num, Space((size,)), seed=seed)
    return Rows(rows.x * SPREAD + MEAN, None, rows.sample, rows.key, rows.parts, rows.log_det)


def velocity(path: str, t: Tensor, x: Tensor) -> Tensor:
    """E[u_t | x_t = x], noise and data being independent normals: a regression of one normal on another."""
    a, b, da, db = {
        "linear": (1 - t, t, -torch.ones_like(t), torch.ones_like(t)),
        "trigonometric": (
            (t * math.pi / 2).cos(),
            (t * math.pi / 2).sin(),
            -math.pi / 2 * (t * math.pi / 2).sin(),
            math.pi / 2 * (t * math.pi / 2).cos(),
        ),
    }[path]
    covariance, variance = a * da + SPREAD**2 * b * db, a * a + SPREAD**2 * b * b
    return db * MEAN + covariance / variance * (x - b * MEAN)


@pytest.mark.parametrize("path", ["linear", "trigonometric"])
@pytest.mark.parametrize("times", ["uniform", "logit_normal", "beta"])
def test_the_loss_is_least_at_the_closed_form(path: str, times: str) -> None:
    """Its slopes there are 0 within their standard errors, and anywhere else they are not."""
    method, density = made(Space((1,)), path=path, times=times)
    density.field = field = Known(lambda t, x: velocity(path, t, x))
    packs = [normal_rows(500, seed) for seed in range(60)]
    found = sums_and_slopes(method, density, field, packs)
    errors = found.mean(0) / (found.std(0) / len(packs) ** 0.5)
    assert errors[1:].abs().max() < 3.5, errors
    with torch.no_grad():
        field.theta += 0.05
    other = sums_and_slopes(method, density, field, packs)
    moved = other.mean(0) / (other.std(0) / len(packs) ** 0.5)
    assert moved[1:].abs().min() > 5, moved
    assert other[:, 0].mean() > found[:, 0].mean()


def test_a_network_comes_near_the_closed_form() -> None:
    method, density = made(Space((1,)), MLP(hidden=(32, 32), activation="silu", initial="uniform"), by=0)
    trained(method, density, lambda step: normal_rows(256, step), 400, 1e-2)
    rows = normal_rows(2000, 12345)
    t = torch.rand(2000, generator=torch.Generator().manual_seed(3))
    x = (1 - t[:, None]) * torch.randn(2000, 1, generator=torch.Generator().manual_seed(4)) + t[:, None] * rows.x
    with torch.no_grad():
        exact = velocity("linear", t[:, None], x)
        error = (density.field(t, x, None) - exact).square().mean().sqrt()
    assert error < 0.12 * exact.std()


def mixture(num: int, seed: int) -> Rows:
    """Three tenths at (-2, 0), the rest at (2, 1)."""
    rows = rows_of(num, Space((2,)), seed=seed)
    right = torch.rand(num, generator=torch.Generator().manual_seed(seed + 10**6)) < 0.7
    centres = torch.where(right[:, None], torch.tensor([2.0, 1.0]), torch.tensor([-2.0, 0.0]))
    return Rows(rows.x * 0.3 + centres, None, rows.sample, rows.key, (num,), rows.log_det)


@pytest.mark.parametrize("pairing", ["none", "optimal_transport"])
def test_rows_of_a_mixture_have_its_modes_and_weights(pairing: str) -> None:
    network = MLP(hidden=(64, 64), activation="silu", initial="uniform")
    method, density = made(Space((2,)), network, by=0, pairing=pairing, tolerance=1e-3, minibatch=128)
    assert method.together == (128 if pairing == "optimal_transport" else None)
    trained(method, density, lambda step: mixture(128, step), 700, 1e-2)
    with torch.no_grad():
        x = density.decode(density.noise(rows_of(3000, Space((2,)), seed=77).keys))
    right = x[:, 0] > 0
    assert float(right.float().mean()) == pytest.approx(0.7, abs=0.04)
    for side, centre in ((right, [2.0, 1.0]), (~right, [-2.0, 0.0])):
        low, middle, high = x[side].quantile(torch.tensor([0.16, 0.5, 0.84]), 0)  # a few lie on the way between
        torch.testing.assert_close(middle, torch.tensor(centre), rtol=0, atol=0.1)
        torch.testing.assert_close((high - low) / 2, torch.tensor([0.3, 0.3]), rtol=0, atol=0.12)
    test = mixture(500, 999).x
    each = [
        math.log(w) - (test - torch.tensor(c)).square().sum(1) / (2 * 0.09) - math.log(2 * math.pi * 0.09)
        for w, c in ((0.7, [2.0, 1.0]), (0.3, [-2.0, 0.0]))
    ]
    best = torch.stack(each).logsumexp(0).mean()
    with torch.no_grad():
        assert 0 < float(best - density.log_prob(test).mean()) < 0.25


def test_pairs_that_are_near_leave_straighter_paths() -> None:
    network = MLP(hidden=(64, 64), activation="silu", initial="uniform")
    apart = {}
    for pairing in ("none", "optimal_transport"):
        method, density = made(Space((2,)), network, by=0, pairing=pairing)
        trained(method, density, lambda step: mixture(128, step), 300, 1e-2)
        with torch.no_grad():
            z = density.noise(rows_of(500, Space((2,)), seed=77).keys)
            one = z + density.field.at(0.0, z, None)
            apart[pairing] = float((one - density.decode(z)).square().sum(1).mean())
    assert apart["optimal_transport"] < 0.5 * apart["none"]


IMAGES = [
    UNet(width=4, factors=(1,), groups=2),
    Patches(patch=2, width=8, layers=1, heads=2),
]


@pytest.mark.parametrize(
    ("space", "network"),
    [*((space, SMALL) for space in SPACES), *((Space((1, 2, 4), classes=2), n) for n in IMAGES)],
    ids=str,
)
def test_how_likely_a_row_is_comes_from_the_map_that_makes_it(space: Space, network: Config) -> None:
    """Whether its trace is known from its layers, or had by going through the network."""
    _, density = made(space, network, by=0.3 if network is SMALL else 0.03, tolerance=1e-8)
    density.double()
    rows = rows_of(2, space)
    x, context = rows.x.double(), space.vector(rows.condition)
    context = None if context is None else context.double()
    z = density.encode(x, context)
    torch.testing.assert_close(density.decode(z, context), x, rtol=1e-6, atol=1e-6)

    def one(x: Tensor, i: int) -> Tensor:
        return density.encode(x.view(1, *space.shape), None if context is None else context[i : i + 1]).flatten()

    maps = [torch.autograd.functional.jacobian(lambda x, i=i: one(x, i), x[i].flatten()) for i in range(2)]
    base = -0.5 * z.flatten(1).square().sum(1) - space.size * math.log(2 * math.pi) / 2
    expected = base + torch.stack([m.slogdet().logabsdet for m in maps])
    with torch.no_grad():
        torch.testing.assert_close(density.log_prob(x, context), expected, rtol=1e-6, atol=1e-6)


def test_the_density_integrates_to_one() -> None:
    _, density = made(Space((2,)), by=0.5, solver="euler", steps=2)
    points, area = grid(7.0, 121)
    with torch.no_grad():
        assert float(density.log_prob(points).exp().sum() * area) == pytest.approx(1, abs=3e-3)
    assert density.evaluations > 10, "solved to the tolerance, whatever makes its rows"


@pytest.mark.parametrize(("solver", "asked"), [("euler", 5), ("midpoint", 10), ("heun", 10), ("dopri5", None)])
def test_rows_take_as_many_questions_as_the_solver_has(solver: str, asked: int | None) -> None:
    _, density = made(Space((2,)), solver=solver, steps=5)
    z = torch.randn(4, 2)
    with torch.no_grad():
        x = density.decode(z)
        assert asked is None or density.evaluations == asked
        fine = made(Space((2,)), tolerance=1e-7)[1].decode(z)
        torch.testing.assert_close(x, fine, rtol=0, atol={"euler": 0.5, "dopri5": 1e-3}.get(solver, 0.05))
        stages = density.path(z)
    assert len(stages) == (31 if solver == "dopri5" else 6)
    torch.testing.assert_close(stages[-1], x, rtol=0, atol=1e-3)
    assert torch.equal(stages[0], z)


@pytest.mark.parametrize("space", SPACES[1:3], ids=str)
def test_guidance_goes_from_without_to_with_and_beyond(space: Space) -> None:
    z, context = torch.randn(4, *space.shape), space.vector(rows_of(4, space).condition)
    assert context is not None
    fields = {w: made(space, guidance=w, condition_dropout=0.1)[1].field for w in (0.0, 1.0, 2.5)}
    with torch.no_grad():
        given, not_given = (fields[1.0].at(0.3, z, c) for c in (context, torch.zeros_like(context)))
        assert (given - not_given).abs().max() > 1e-2
        for w, field in fields.items():
            expected = not_given + w * (given - not_given)
            torch.testing.assert_close(field.guided(0.3, z, context, w), expected)
        rows = {w: made(space, guidance=w, condition_dropout=0.1, solver="heun")[1] for w in fields}
        torch.testing.assert_close(rows[1.0].decode(z, context), made(space, solver="heun")[1].decode(z, context))
        torch.testing.assert_close(rows[0.0].decode(z, context), rows[0.0].decode(z, torch.zeros_like(context)))
        torch.testing.assert_close(rows[2.5].encode(rows[2.5].decode(z, context), context), z, rtol=0, atol=2e-2)
        torch.testing.assert_close(rows[2.5].log_prob(z, context), rows[1.0].log_prob(z, context))


def test_guidance_without_learning_from_untold_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="guidance is 2, which needs rows learned from without"):
        FlowMatching(guidance=2)


@pytest.mark.parametrize("space", SPACES[1:3], ids=str)
def test_rows_that_are_not_told_are_as_many_as_asked_for(space: Space) -> None:
    method, density = made(space, condition_dropout=0.25)
    seen: list[Tensor] = []
    density.field.register_forward_pre_hook(lambda _, given: seen.append(given[2]))
    method.fit(density, rows_of(4000, space))
    untold = (seen[0] == 0).all(1).float().mean()
    assert float(untold) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("fields", [{}, {"pairing": "optimal_transport"}, {"condition_dropout": 0.3}], ids=str)
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_loss_does_not_depend_on_the_pack(space: Space, fields: dict[str, object]) -> None:
    if space.features and "pairing" in fields:
        return
    method, density = made(space, **fields)
    rows = rows_of(9, space, parts=(4, 5))
    whole = method.fit(density, rows).losses["velocity"]
    parts = [method.fit(density, some(rows, rows_)).losses["velocity"] for rows_ in (slice(0, 4), slice(4, 9))]
    torch.testing.assert_close(whole, sum(parts), rtol=1e-5, atol=1e-5)
    assert method.counts(rows) == {"velocity": 9.0}
    assert not torch.equal(method.fit(density, rows.keyed(11)).losses["velocity"], whole)


def test_vectors_have_no_pairs() -> None:
    with pytest.raises(UnsupportedError, match=r"^method.pairing: noise is paired among rows of the same class"):
        FlowMatching(pairing="optimal_transport").check(Space((2,), features=3))
    FlowMatching(pairing="optimal_transport").check(Space((2,), classes=3))
