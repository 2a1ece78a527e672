"""Masked autoregression: what sees what."""

from __future__ import annotations

import pytest
import torch

from danlu.density import Space
from danlu.method.maf import MAF
from danlu.parts.masked import Masked, degrees, masks
from danlu.parts.network import MLP
from densities import SMALL, context_of, disturbed, rows_of


def masked(space: Space, network: MLP = SMALL, steps: int = 1) -> Masked:
    density = MAF(steps=steps).density(space, network, 0)
    assert isinstance(density, Masked)
    disturbed(density)
    return density


@pytest.mark.parametrize("hidden", [(), (3,), (7, 16), (16, 5, 9)])
@pytest.mark.parametrize("classes", [0, 2])
def test_noise_depends_on_all_that_comes_before_and_on_nothing_after(hidden: tuple[int, ...], classes: int) -> None:
    density = masked(Space((5,), classes), MLP(hidden=hidden))
    rows = rows_of(density.space, 1)
    context = context_of(density.space, rows)
    jacobian = torch.autograd.functional.jacobian(lambda x: density.encode(x, context)[0], rows.x)[:, 0]
    assert torch.equal(jacobian, jacobian.tril())
    if len(hidden) == 0 or min(hidden) >= 5:
        assert (jacobian[torch.ones(5, 5).tril().bool()] != 0).all()


def test_of_two_steps_the_second_goes_the_other_way_round() -> None:
    density = masked(Space((4,)), steps=2)
    z = rows_of(density.space, 1).x
    _, between, x = density.path(z)
    undone = masked_jacobian(density, x)
    assert (undone != 0).all()
    assert not torch.isclose(between, x).any()


def masked_jacobian(density: Masked, x: torch.Tensor) -> torch.Tensor:
    return torch.autograd.functional.jacobian(lambda x: density.encode(x)[0], x)[:, 0]


def test_every_number_depends_on_what_it_is_conditioned_on() -> None:
    """The first one too: units that see no number see the context."""
    density = masked(Space((4,), features=2))
    rows = rows_of(density.space, 1)
    context = context_of(density.space, rows)
    assert context is not None
    jacobian = torch.autograd.functional.jacobian(lambda c: density.encode(rows.x, c)[0], context)[:, 0]
    assert (jacobian[:, :2] != 0).all()


def test_degrees_are_spread_over_all_that_there_are() -> None:
    assert degrees(5, 4, lowest=1).tolist() == [1, 2, 3, 4]
    assert degrees(5, 2, lowest=1).tolist() == [1, 3]
    assert degrees(3, 7, lowest=0).tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert degrees(2, 3, lowest=1).tolist() == [1, 1, 1]


def test_a_path_through_the_masks_is_a_way_to_see() -> None:
    """Whether an output sees an input is a product of masks, and must be what autoregression says."""
    order = torch.tensor([[0, 1, 2, 3], [2, 0, 3, 1]])
    ways = masks(order, (6, 9), 1, 2)
    for k, come in enumerate(order):
        first, middle, last = (way[k % len(way)].double() for way in ways)
        seen = (last @ middle @ first).T > 0
        wanted = torch.ones(4, 4).triu(1).bool().repeat(1, 2)
        assert torch.equal(seen[:4][come][:, torch.cat([come, come + 4])], wanted)
        assert seen[4].all()


def test_weights_behind_a_mask_stay_zero_while_it_learns() -> None:
    density = MAF(steps=2).density(Space((4,)), SMALL, 0)
    assert isinstance(density, Masked)
    optimizer = torch.optim.AdamW(density.parameters(), lr=1e-2)
    x = rows_of(density.space, 32).x.float()
    for _ in range(3):
        optimizer.zero_grad()
        (-density.log_prob(x).sum()).backward()
        optimizer.step()
    for i, mask in enumerate(masks(density.order, SMALL.hidden, 0, 2)):
        matrices = getattr(density.conditioners, f"matrix{i}")
        assert not matrices[~mask.expand_as(matrices)].any()
        assert matrices[mask.expand_as(matrices)].any()


def test_an_order_that_was_drawn_is_loaded_with_the_weights() -> None:
    one, other = (MAF(steps=3, mixing="shuffle").density(Space((5,)), SMALL, seed) for seed in (0, 1))
    disturbed(one)
    x = rows_of(one.space, 4).x
    assert not torch.equal(one.order, other.order)
    other.double().load_state_dict(one.state_dict())
    assert torch.equal(one.encode(x), other.encode(x))
    torch.testing.assert_close(other.decode(other.encode(x).detach()), x)


def test_many_rows_are_made_as_few_are() -> None:
    density = masked(Space((3,), classes=2), steps=2)
    rows = rows_of(density.space, 2500)
    context = context_of(density.space, rows)
    assert context is not None
    x = density.decode(rows.x, context)
    torch.testing.assert_close(x[2000:2010], density.decode(rows.x[2000:2010], context[2000:2010]))
    torch.testing.assert_close(density.encode(x, context).detach(), rows.x)


def test_a_row_is_made_a_number_at_a_time_and_scored_at_once() -> None:
    density = masked(Space((4,)), steps=2)
    x = rows_of(density.space, 3).x
    with torch.no_grad():
        told = []
        for ask in (density.decode, density.encode, density.decode, density.log_prob):
            ask(x)
            told.append(density.evaluations)
    assert told == [4, 1, 4, 1]
