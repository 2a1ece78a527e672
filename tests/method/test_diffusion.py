"""Diffusion: how data become noise, what the loss is least at, and a bound that is tight where it can be."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from danlu.density import Rows, Space
from danlu.method.diffusion import DenoisedRows, Diffusion
from danlu.parts.network import MLP
from danlu.parts.noising import Noising, Schedule

from .fields import Known, rows_of, shaken, some, sums_and_slopes, trained

SPACES = [Space((2,)), Space((3,), classes=3), Space((2,), features=2), Space((1, 2, 2))]
SMALL = MLP(hidden=(8, 8), activation="silu", initial="uniform")
SCHEDULES: list[Schedule] = ["linear", "cosine"]


def made(space: Space, *, by: float = 0.3, **fields: object) -> tuple[Diffusion, DenoisedRows]:
    method = Diffusion(**fields)  # type: ignore[arg-type]
    density = method.density(space, SMALL, seed=1)
    shaken(density, by=by)
    return method, density


def noise_in(noising: Noising, spread: float, t: Tensor, x: Tensor) -> Tensor:
    """E[e | x_t] where data are N(0, spread^2): t is the share of the steps."""
    data, rest = noising.shares[:, (t * noising.steps).round().long()]
    return rest * x / (data.square() * spread**2 + rest.square())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_steps_one_by_one_are_the_one_step(schedule: Schedule) -> None:
    noising = Noising(schedule, 50)
    mean, variance = 1.0, 0.0
    for t in range(1, 51):
        beta = noising.betas[t - 1]
        mean, variance = mean * math.sqrt(1 - beta), variance * (1 - beta) + beta
        assert noising.shares[0, t].item() == pytest.approx(mean, rel=1e-5)
        assert noising.shares[1, t].item() ** 2 == pytest.approx(variance, rel=1e-5)
    assert noising.kept[-1] < 1e-3
    x = torch.full((20000, 1), 1.5)
    noise = torch.randn(20000, 1, generator=torch.Generator().manual_seed(1))
    some_ = noising.at(torch.full((20000,), 20), x, noise)
    assert float(some_.mean()) == pytest.approx(1.5 * math.sqrt(noising.kept[20]), abs=0.02)
    assert float(some_.var()) == pytest.approx(1 - noising.kept[20], rel=0.03)


def test_the_published_schedules() -> None:
    linear = Noising("linear", 1000)
    assert linear.betas[0] == pytest.approx(1e-4)
    assert linear.betas[-1] == pytest.approx(0.02)
    assert linear.kept[1000] == pytest.approx(4.0358e-5, rel=1e-3)  # as Ho et al.'s schedule comes to
    cosine = Noising("cosine", 1000)
    assert cosine.kept[500] == pytest.approx(
        math.cos(0.508 / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    )
    assert max(cosine.betas) == 0.999


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_loss_is_least_at_the_noise_that_is_expected(schedule: Schedule) -> None:
    method, density = made(Space((1,)), num_steps=100, schedule=schedule, sampling_steps=10)
    density.field = field = Known(lambda t, x: noise_in(density.noising, 0.5, t, x))

    def rows(seed: int) -> Rows:
        rows = rows_of(500, Space((1,)), seed=seed)
        return Rows(rows.x * 0.5, None, rows.sample, rows.key, rows.parts, rows.log_det)

    packs = [rows(seed) for seed in range(60)]
    found = sums_and_slopes(method, density, field, packs)
    errors = found.mean(0) / (found.std(0) / len(packs) ** 0.5)
    assert errors[1:].abs().max() < 3.5, errors
    with torch.no_grad():
        field.theta += 0.05
    other = sums_and_slopes(method, density, field, packs)
    moved = other.mean(0) / (other.std(0) / len(packs) ** 0.5)
    assert moved[1:].abs().min() > 5, moved


def bound(spread: float, steps: int, schedule: Schedule, draws: int, **fields: object) -> tuple[Tensor, Tensor, Tensor]:
    """The bound of some rows by a perfect denoiser, draw by draw, and the exact log-density."""
    _, density = made(Space((1,)), num_steps=steps, schedule=schedule, sampling_steps=2, **fields)
    density.field = Known(lambda t, x: noise_in(density.noising, spread, t, x))
    x = torch.tensor([[0.1], [-0.6], [1.3]]) * spread
    keys = rows_of(3 * draws, Space((1,)), seed=2).keys
    with torch.no_grad():
        found = density.log_prob(x.repeat(draws, 1), None, keys).view(draws, 3).double()
    exact = -0.5 * (x[:, 0] / spread).square() - math.log(spread) - math.log(2 * math.pi) / 2
    return found.mean(0), found.std(0) / draws**0.5, exact.double()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_perfect_denoisers_bound_is_the_likelihood_of_data_that_stay_as_they_are(schedule: Schedule) -> None:
    """Standard normal data keep their distribution, and every step back is exactly N(mean, beta_t)."""
    found, error, exact = bound(1.0, 40, schedule, 4000)
    assert ((found - exact).abs() < 3.5 * error + 2e-3).all(), (found, exact, error)
    assert error.max() < 0.1


def test_the_bound_is_a_bound_that_more_steps_make_tighter() -> None:
    gaps = []
    for steps in (20, 80, 320):
        found, error, exact = bound(0.5, steps, "linear", 3000 if steps < 300 else 1000)
        assert (exact - found > -3 * error).all()
        gaps.append(float((exact - found).mean()))
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] * 0.7, gaps
    assert gaps[2] < 0.1


def test_some_of_the_steps_estimate_all_of_them() -> None:
    whole, error, _ = bound(0.5, 40, "linear", 3000)
    few, rough, _ = bound(0.5, 40, "linear", 6000, bound_steps=7)
    assert ((whole - few).abs() < 3.5 * (error + rough)).all(), (whole, few, rough)


def test_rows_of_normal_data_are_spread_as_they_are() -> None:
    _, density = made(Space((1,)), num_steps=1000, sampling_steps=200)
    density.field = Known(lambda t, x: noise_in(density.noising, 0.5, t, x))

    def at(t: float, x: Tensor, context: Tensor | None, guidance: float) -> Tensor:
        return density.field(torch.full((len(x),), t), x, context)

    density.field.guided = at  # type: ignore[assignment]
    z = torch.randn(5000, 1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = density.decode(z)
    assert float(x.std()) == pytest.approx(0.5, rel=0.03)
    torch.testing.assert_close(x, 0.5 * z, rtol=0.03, atol=0.01)  # the only increasing map between the two


def test_taken_back_the_error_falls_with_the_steps() -> None:
    errors = []
    z = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    for steps in (10, 40, 160):
        _, density = made(Space((2,)), by=0.1, sampling_steps=steps)
        with torch.no_grad():
            errors.append(float((density.encode(density.decode(z)) - z).abs().mean()))
        assert density.evaluations == steps
    assert errors[0] > 2 * errors[1] > 4 * errors[2], errors


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_path_is_the_way_that_rows_take(space: Space) -> None:
    _, density = made(space, by=0.1, sampling_steps=45)
    z, context = torch.randn(3, *space.shape), space.vector(rows_of(3, space).condition)
    with torch.no_grad():
        stages, x = density.path(z, context), density.decode(z, context)
    assert len(stages) == 31
    assert torch.equal(stages[0], z)
    assert torch.equal(stages[-1], x)
    assert density.evaluations == 45


@pytest.mark.parametrize("fields", [{}, {"condition_dropout": 0.3}], ids=str)
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_loss_does_not_depend_on_the_pack(space: Space, fields: dict[str, object]) -> None:
    method, density = made(space, num_steps=20, sampling_steps=5, **fields)
    rows = rows_of(9, space)
    whole = method.fit(density, rows).losses["noise"]
    parts = [method.fit(density, some(rows, rows_)).losses["noise"] for rows_ in (slice(0, 4), slice(4, 9))]
    torch.testing.assert_close(whole, sum(parts), rtol=1e-5, atol=1e-5)
    assert method.counts(rows) == {"noise": 9.0}
    assert not torch.equal(method.fit(density, rows.keyed(11)).losses["noise"], whole)
    context = space.vector(rows.condition)
    with torch.no_grad():
        likely = density.log_prob(rows.x, context)
        again = density.log_prob(rows.x[3:5], None if context is None else context[3:5])
    torch.testing.assert_close(likely[3:5], again, rtol=1e-4, atol=1e-3)
    assert likely.isfinite().all()


def test_guidance_changes_rows_and_not_the_bound() -> None:
    space = Space((2,), classes=2)
    z, context = torch.randn(3, 2), space.vector(torch.tensor([0, 1, 0]))
    with torch.no_grad():
        plain, firm = (made(space, by=0.1, guidance=w, condition_dropout=0.1)[1] for w in (1.0, 3.0))
        assert (plain.decode(z, context) - firm.decode(z, context)).abs().max() > 1e-3
        torch.testing.assert_close(plain.log_prob(z, context), firm.log_prob(z, context))


def test_it_learns_two_modes() -> None:
    def draw(step: int) -> Rows:
        rows = rows_of(256, Space((1,)), seed=step)
        right = torch.rand(256, 1, generator=torch.Generator().manual_seed(step + 10**6)) < 0.7
        x = rows.x * 0.2 + torch.where(right, 0.7, -1.3)
        return Rows(x, None, rows.sample, rows.key, rows.parts, rows.log_det)

    method = Diffusion(num_steps=100, sampling_steps=100)
    density = method.density(Space((1,)), MLP(hidden=(64, 64), activation="silu", initial="uniform"), 0)
    trained(method, density, draw, 400, 1e-2)
    with torch.no_grad():
        x = density.decode(density.noise(rows_of(2000, Space((1,)), seed=3).keys))
    right = x > -0.3
    assert float(right.float().mean()) == pytest.approx(0.7, abs=0.05)
    assert float(x[right].mean()) == pytest.approx(0.7, abs=0.1)
    assert float(x[~right].mean()) == pytest.approx(-1.3, abs=0.15)
    assert float(x[right].std()) == pytest.approx(0.2, abs=0.1)


def test_more_steps_than_there_are_are_refused() -> None:
    with pytest.raises(ValueError, match="sampling_steps is 50, more than the 20 steps there are: raise num_steps"):
        Diffusion(num_steps=20)
    with pytest.raises(ValueError, match="bound_steps is 30, more than the 20 steps there are"):
        Diffusion(num_steps=20, sampling_steps=5, bound_steps=30)
