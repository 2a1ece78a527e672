"""RealNVP of images: what is coupled with what, at which scale."""

from __future__ import annotations

import pytest
import torch

from danlu.config import Config
from danlu.density import Space
from danlu.method.realnvp import RealNVP
from danlu.parts.bijection import Affine
from danlu.parts.coupling import Coupling
from danlu.parts.multiscale import MultiScale
from danlu.parts.network import MLP, Patches, UNet
from densities import context_of, disturbed, mass, rows_of, volumes

SMALL = RealNVP(channels=4, blocks=1)


def images(*shape: int, classes: int = 0, **fields: int) -> MultiScale:
    density = SMALL.model_copy(update=fields).density(Space(shape, classes), None, 0)
    assert isinstance(density, MultiScale)
    disturbed(density, scale=0.1)
    return density


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 2), (1, 3, 5), (2, 8, 8), (1, 1, 2)])
@pytest.mark.parametrize("scales", [1, 2, 3])
def test_images_of_every_size_come_back_and_have_the_volume_of_their_jacobian(
    shape: tuple[int, ...], scales: int
) -> None:
    density = images(*shape, scales=scales)
    x = rows_of(density.space, 2).x
    z, log_det = density(x)
    torch.testing.assert_close(density.decode(z), x)
    if density.space.size < 60:
        torch.testing.assert_close(log_det, volumes(density.encode, x, None))


def test_scales_are_as_in_the_paper() -> None:
    density = images(1, 8, 8, scales=3)
    assert [len(steps) for steps in density.pixels] == [3, 3, 4]
    assert [len(steps) for steps in density.channels] == [3, 3]
    assert [len(steps) for steps in images(1, 6, 6, scales=4).pixels] == [3, 4]


def test_a_step_of_pixels_holds_those_of_one_colour_of_the_board() -> None:
    density = images(1, 4, 4)
    x = rows_of(density.space, 3).x
    board = (torch.arange(4)[:, None] + torch.arange(4)) % 2 == 0
    for held, step in zip((board, ~board), density.pixels[0], strict=False):
        y, _ = step(x, None)
        assert torch.equal(y[..., held], x[..., held])
        assert not torch.isclose(y[..., ~held], x[..., ~held]).any()


def test_what_is_noise_after_the_first_scale_is_left_alone() -> None:
    """Of each square of two by two pixels the first half of the channels goes on, the other half is done."""
    density = images(1, 4, 4)
    x = rows_of(density.space, 2).x
    z, _ = density(x)
    h = x
    for step in density.pixels[0]:
        h, _ = step(h, None)
    shallow = torch.nn.functional.pixel_unshuffle(h, 2)
    for step in density.channels[0]:
        shallow, _ = step(shallow, None)
    done = torch.nn.functional.pixel_unshuffle(z, 2)
    assert torch.equal(done[:, 2:], shallow[:, 2:])
    assert not torch.isclose(done[:, :2], shallow[:, :2]).all()


def test_two_pixels_have_all_their_mass_under_each_class() -> None:
    density = images(1, 1, 2, classes=2)
    for number in (0, 1):
        context = torch.nn.functional.one_hot(torch.tensor([number]), 2).double()
        total = mass(
            lambda x, c=context: density.log_prob(x.view(-1, 1, 1, 2), c.expand(len(x), -1)), reach=20.0, points=301
        )
        assert total == pytest.approx(1.0, abs=2e-3)


def test_a_class_changes_an_image_at_every_scale() -> None:
    density = images(1, 4, 4, classes=3)
    rows = rows_of(density.space, 3)
    context = context_of(density.space, rows)
    assert context is not None
    for steps in (*density.pixels, *density.channels):
        told = [p for name, p in steps.named_parameters() if name.endswith("told")]
        assert len(told) == len(steps)
    with torch.no_grad():
        assert not torch.isclose(density.log_prob(rows.x, context), density.log_prob(rows.x, context.roll(1, 1))).any()


@pytest.mark.parametrize("network", [UNet(width=4, factors=(1, 2), groups=2), Patches(width=8, layers=1, heads=2)])
def test_a_network_that_the_recipe_names_steers_every_step(network: Config) -> None:
    density = SMALL.density(Space((1, 8, 8), classes=2), network, 0)
    assert isinstance(density, MultiScale)
    rows = rows_of(density.space, 2)
    context = context_of(density.space, rows)
    assert context is not None
    torch.testing.assert_close(density(rows.x.float(), context.float())[0].detach(), rows.x.float())
    disturbed(density, scale=0.03)
    with torch.no_grad():
        z, log_det = density(rows.x, context)
        torch.testing.assert_close(density.decode(z, context), rows.x)
        assert not torch.isclose(log_det, density(rows.x, context.roll(1, 1))[1]).any()


def test_with_an_mlp_images_are_the_numbers_they_have() -> None:
    density = RealNVP().density(Space((1, 4, 4)), MLP(hidden=(8,)), 0)
    assert isinstance(density, Coupling)
    assert isinstance(RealNVP().density(Space((4, 1, 1)), None, 0), Coupling)


def test_a_step_spreads_by_no_more_than_the_largest_slope() -> None:
    affine = Affine(4.0)
    a = torch.tensor([-1e9, -1.0, 0.0, 1e-3, 1.0, 1e9], dtype=torch.float64)
    slope = affine.log_slope(a).exp()
    assert float(slope[0]) == pytest.approx(0.25)
    assert float(slope[-1]) == pytest.approx(4.0)
    assert (slope.diff() > 0).all()
    assert float(slope[3]) == pytest.approx(1.001, abs=1e-5)
