"""Splines whose functions are compiled compute what plain ones do, forwards and backwards."""

from __future__ import annotations

import pytest
import torch

from danlu.density import Space
from danlu.method.spline_coupling import SplineCoupling
from danlu.parts.compiled import compilation


@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself
def test_compiled_splines_have_the_gradients_of_plain_ones() -> None:
    flow = SplineCoupling(steps=2).density(Space((5,)), None, 0)
    flow.double()
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=chance, dtype=torch.float64))
    for num in (7, 64, 300):
        x = 3 * torch.randn(num, 5, generator=chance, dtype=torch.float64)
        found = []
        for on in (False, True):
            with compilation(on):
                log_prob = flow.log_prob(x)
                gradients = torch.autograd.grad(log_prob.sum(), list(flow.parameters()))
                with torch.no_grad():
                    found.append([log_prob.detach(), *gradients, flow.decode(flow.encode(x))])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b)
