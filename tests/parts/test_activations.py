"""Activations of our own, against torch's: values, gradients of gradients, forward derivatives, batches."""

from __future__ import annotations

import torch
from torch import Tensor

from danlu.parts.activations import tanh


def test_tanh_is_torchs_and_so_are_its_derivatives() -> None:
    x = torch.linspace(-20, 20, 301, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(tanh(x), torch.tanh(x), rtol=1e-14, atol=1e-15)
    assert torch.autograd.gradcheck(tanh, x[100:200:7].detach().requires_grad_(), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(tanh, x[100:200:7].detach().requires_grad_())
    narrow = torch.linspace(-20, 20, 301)
    torch.testing.assert_close(tanh(narrow), torch.tanh(narrow))
    assert tanh(narrow).dtype == torch.float32


def test_tanh_in_transforms_of_functions() -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double()

    def energy(row: Tensor) -> Tensor:
        return (tanh(row) * row).sum()

    def expected(row: Tensor) -> Tensor:
        return (torch.tanh(row) * row).sum()

    for transform in (torch.func.grad, torch.func.hessian, torch.func.jacfwd):
        torch.testing.assert_close(torch.func.vmap(transform(energy))(x), torch.func.vmap(transform(expected))(x))


def test_tanh_compiles() -> None:
    x = torch.randn(9, requires_grad=True)
    compiled = torch.compile(tanh, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), torch.tanh(x))
