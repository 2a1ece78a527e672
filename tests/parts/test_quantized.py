"""Layers in few bits: against the matrix that they stand for, and in bytes."""

from __future__ import annotations

import sys
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from danlu.errors import UnsupportedError
from danlu.parts.quantized import Quantization, Quantized, num_bytes, num_matrix_weights, num_weights, require

KINDS = get_args(Quantization)
OUTPUTS, INPUTS = 24, 40


def layer(kind: Quantization, *, bias: bool = True) -> Quantized:
    pytest.importorskip("bitsandbytes")
    generator = torch.Generator().manual_seed(0)
    weight, offset = torch.randn(OUTPUTS, INPUTS, generator=generator), torch.randn(OUTPUTS, generator=generator)
    return Quantized(weight, offset if bias else None, kind, transposed=False)


@pytest.mark.parametrize(("kind", "worst"), [("int8", 1e-2), ("nf4", 0.12), ("fp4", 0.16)])
def test_the_matrix_is_nearly_what_it_was(kind: Quantization, worst: float) -> None:
    weight = torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(0))
    error = (layer(kind).weight - weight).norm() / weight.norm()
    assert 0 < error < worst


def test_8_bits_are_the_definition() -> None:
    weight = torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(0))
    largest = weight.abs().amax(1, keepdim=True)
    torch.testing.assert_close(layer("int8").weight, (weight * 127 / largest).round() * largest / 127)


def test_4_bits_are_the_nearest_of_16_quantiles() -> None:
    """The values are those of the paper's appendix."""
    quantiles = torch.tensor(
        [
            *(-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.09105, 0.0),
            *(0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.562617, 0.7229568, 1.0),
        ]
    )
    weight = torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(0)).view(-1, 64)
    largest = weight.abs().amax(1, keepdim=True)
    nearest = (weight[..., None] / largest[..., None] - quantiles).abs().argmin(-1)
    expected = (quantiles[nearest] * largest).view(OUTPUTS, INPUTS)
    torch.testing.assert_close(layer("nf4").weight, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_computes_and_differentiates_as_a_layer_of_that_matrix(kind: Quantization, dtype: torch.dtype) -> None:
    kept = layer(kind)
    assert kept.bias is not None
    x = torch.randn(7, INPUTS, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    same = x.detach().clone().requires_grad_()
    y, expected = kept(x), F.linear(same, kept.weight.to(dtype)) + kept.bias.to(dtype)
    assert torch.equal(y, expected)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    expected.backward(upstream)
    assert torch.equal(x.grad, same.grad)  # type: ignore[arg-type]
    assert not any(p.requires_grad for p in kept.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_backward_keeps_the_codes_alone(kind: Quantization) -> None:
    kept, seen = layer(kind, bias=False), list[torch.Tensor]()
    x = torch.randn(7, INPUTS, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (seen.append(t), t)[1], lambda t: t):
        kept(x)
    assert {t.data_ptr() for t in seen} == {kept.codes.data_ptr(), kept.scales.data_ptr()}


def test_its_size_in_bytes() -> None:
    weights = OUTPUTS * INPUTS
    sizes = {kind: layer(kind, bias=False).num_bytes for kind in KINDS}
    assert sizes == {
        "int8": weights + 4 * OUTPUTS,
        "nf4": weights // 2 + 4 * (weights // 64),
        "fp4": weights // 2 + 4 * (weights // 64),
    }
    both = nn.Sequential(layer("nf4"), nn.Linear(3, 5))
    assert num_weights(both) == weights + OUTPUTS + 15 + 5
    assert num_matrix_weights(both) == weights + 15
    assert num_bytes(both) == sizes["nf4"] + 4 * (OUTPUTS + 20)
    assert len(list(both.state_dict())) == 3  # what is kept of the matrix follows from the base


def test_autocast_is_followed() -> None:
    kept = layer("int8", bias=False)
    x = torch.randn(3, INPUTS)
    with torch.autocast("cpu", torch.bfloat16):
        y = kept(x)
    assert torch.equal(y, F.linear(x.bfloat16(), kept.weight.bfloat16()))


def test_without_the_package_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UnsupportedError, match=r"needs the `bitsandbytes` package. Install it: pip install 'danlu"):
        require("nf4", torch.device("cpu"))


def test_a_device_that_cannot_is_refused() -> None:
    pytest.importorskip("bitsandbytes")
    require("nf4", torch.device("cpu"))
    with pytest.raises(UnsupportedError, match="cannot do int8 on xla"):
        require("int8", torch.device("xla"))
