"""Networks of one vector: three ways through that agree, and a gradient written out that autograd confirms."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from danlu.parts.mlp import Networks
from danlu.parts.network import MLP

SHAPES = [MLP(hidden=hidden, activation=act) for hidden in [(), (5,), (7, 4, 6)] for act in ("tanh", "relu")]
IDS = [f"{shape.activation}-{len(shape.hidden)}" for shape in SHAPES]


def networks(shape: MLP, outputs: tuple[int, ...] = (3, 1), own: int = 2) -> Networks:
    made = Networks(4, outputs, shape, seed=1, own=own).double()
    with torch.no_grad():
        made.theta += 0.3 * torch.randn(made.theta.shape, generator=torch.Generator().manual_seed(2))
    return made


def by_torch(made: Networks, k: int, x: Tensor) -> Tensor:
    """One network as a chain of torch's own layers."""
    weights = made.weights(made.theta)
    act = torch.tanh if made.shape.activation == "tanh" else torch.relu
    for matrix, bias in weights.hidden:
        x = act(torch.nn.functional.linear(x, matrix[k].T, bias[k, 0]))
    matrix, bias = weights.last[k]
    return torch.nn.functional.linear(x, matrix.T, bias)


@pytest.mark.parametrize("outputs", [(3,), (3, 1)], ids=["one", "two"])
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_every_way_through_is_that_of_layers_one_by_one(shape: MLP, outputs: tuple[int, ...]) -> None:
    made = networks(shape, outputs)
    x = torch.randn(9, 4, dtype=torch.float64)
    own = made.weights(made.theta).own
    ways = {"forward": made(x), "differentiable": made.differentiable(x)}
    with torch.no_grad():
        ways["without a gradient"] = made(x)
    for name, said in ways.items():
        for k in range(len(outputs)):
            torch.testing.assert_close(said[k], by_torch(made, k, x), msg=lambda m, n=name: f"{n}: {m}")
        assert torch.equal(said[-1], own)
    for k in range(len(outputs)):
        torch.testing.assert_close(torch.from_numpy(made.answer(k, x.numpy())), by_torch(made, k, x))
    assert torch.equal(torch.from_numpy(made.own), own)


@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_the_gradient_written_out_is_autograds(shape: MLP) -> None:
    made = networks(shape)
    x = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn(9, 3, dtype=torch.float64), torch.randn(9, 1, dtype=torch.float64), torch.randn(2).double()]

    def gradients(said: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            sum((w * y).sin().sum() for w, y in zip(weights, said, strict=True)), [made.theta, x]
        )

    for ours, theirs in zip(gradients(made(x)), gradients(made.differentiable(x)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_frozen_network_has_a_gradient_of_its_input_only() -> None:
    made = networks(MLP(hidden=(6,)), (1,), own=0)
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    made(x, frozen=True)[0].sum().backward()
    assert made.theta.grad is None
    (expected,) = torch.autograd.grad(made.differentiable(x)[0].sum(), x)
    torch.testing.assert_close(x.grad, expected)


def test_numpys_answer_follows_the_weights_wherever_they_go() -> None:
    made = networks(MLP(hidden=(6,)))
    x = torch.randn(5, 4, dtype=torch.float64)

    def agree(one: Networks) -> None:
        with torch.no_grad():
            torch.testing.assert_close(
                torch.from_numpy(one.answer(0, x.to(one.theta.dtype).numpy())), one(x.to(one.theta))[0]
            )

    agree(made)
    with torch.no_grad():
        made.theta.mul_(2)
    agree(made)
    other = copy.deepcopy(made)
    with torch.no_grad():
        other.theta.mul_(0.5)
    agree(other)
    agree(made)
    other.load_state_dict(networks(MLP(hidden=(6,))).state_dict())
    agree(other)
    agree(other.float())


def test_weights_at_the_start() -> None:
    made = Networks(4, (2, 1), MLP(hidden=(8, 8)), seed=3, gains=(0.01, 1.0), own=1)
    weights = made.weights(made.theta.detach())
    for matrix, bias in weights.hidden:
        for k in range(2):
            narrow = matrix[k] if len(matrix[k]) <= 8 and matrix[k].shape[0] <= matrix[k].shape[1] else matrix[k].T
            torch.testing.assert_close(narrow @ narrow.T, 2 * torch.eye(len(narrow)), atol=1e-5, rtol=0)
            assert not bias[k].any()
    assert not torch.equal(weights.hidden[0][0][0], weights.hidden[0][0][1])
    torch.testing.assert_close(weights.last[0][0].T @ weights.last[0][0], 1e-4 * torch.eye(2), atol=1e-8, rtol=0)
    assert not weights.own.any()
    assert torch.equal(made.theta, Networks(4, (2, 1), MLP(hidden=(8, 8)), seed=3, gains=(0.01, 1.0), own=1).theta)
    even = Networks(4, (2,), MLP(hidden=(100,), initial="uniform"), seed=3)
    first, last = even.weights(even.theta.detach()).hidden[0][0], even.weights(even.theta.detach()).last[0][0]
    assert 0.4 < float(first.abs().max()) <= 0.5
    assert 0.09 < float(last.abs().max()) <= 0.1
