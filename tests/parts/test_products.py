"""Products by whichever library are the products."""

from __future__ import annotations

import pytest
import torch

from danlu.parts import products

SIZES = {"small": (8, 5, 7), "large": (200, 160, 150)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("k", [1, 3])
def test_products_are_those_of_float64(size: str, k: int) -> None:
    (b, i, o), chance = SIZES[size], torch.Generator().manual_seed(0)
    assert (b * i * o >= products.LARGE) == (size == "large")
    a, w, d = (torch.randn(k, *shape, generator=chance) for shape in ((b, i), (i, o), (b, o)))
    bias = torch.randn(k, 1, o, generator=chance)
    near = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(products.affine(bias, a, w), (bias.double() + a.double() @ w.double()).float(), **near)
    torch.testing.assert_close(products.product(d, w.mT), (d.double() @ w.double().mT).float(), **near)
    into = torch.empty(k, i, o)
    assert products.product(a.mT, d, into) is into
    torch.testing.assert_close(into, (a.double().mT @ d.double()).float(), **near)
    assert products.product(a.double(), w.double()).dtype == torch.float64
