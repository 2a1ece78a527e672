"""Orders of numbers: every way leads where it says, and back."""

from __future__ import annotations

import pytest
import torch

from danlu.parts.order import Mixing, of_halves, of_wholes


@pytest.mark.parametrize("mixing", ["alternate", "shuffle"])
@pytest.mark.parametrize("size", [2, 5, 8])
@pytest.mark.parametrize("num", [1, 2, 5])
def test_all_ways_in_turn_lead_home(mixing: Mixing, size: int, num: int) -> None:
    row = torch.arange(float(size))[:, None]
    orders = of_halves(mixing, size, num, 3)
    x = row
    for k in range(num):
        x = orders(k, x)
        assert torch.equal(orders.home(k, x), row)
        first = (size + 1 - k % 2) // 2
        x = torch.cat([x[first:], x[:first]])
    assert torch.equal(orders(num, x), row)
    for k in range(num + 1):
        assert torch.equal(orders.backward(k, orders(k, row)), row)


def test_wholes_turn_round_by_turns() -> None:
    assert of_wholes("alternate", 3, 3, 0).tolist() == [[0, 1, 2], [2, 1, 0], [0, 1, 2]]


def test_halves_change_places_by_turns() -> None:
    orders = of_halves("alternate", 5, 3, 0)
    taken = orders(0, torch.arange(5.0)[:, None])
    assert taken[:, 0].tolist() == [0, 2, 4, 1, 3]
    assert orders.stays == [False, True, True, False]
    assert not orders.state_dict()


def test_shuffles_follow_from_the_seed_and_are_saved() -> None:
    one, same, another = (of_wholes("shuffle", 6, 4, seed) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, another)
    assert (one.sort(1).values == torch.arange(6)).all()
    a, b, c = (of_halves("shuffle", 6, 4, seed) for seed in (0, 0, 1))
    assert torch.equal(a.ways, b.ways)
    assert not torch.equal(a.ways, c.ways)
    assert a.state_dict().keys() == {"ways", "back", "homes"}
