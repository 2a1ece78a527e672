"""Flows of nflows and zuko under copied weights: noise, log-determinant, likelihood, inverse and gradients."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from danlu.density import Space
from danlu.method.maf import MAF
from danlu.method.nice import NICE
from danlu.method.realnvp import RealNVP
from danlu.method.spline_coupling import SplineCoupling
from danlu.parts.coupling import Coupling
from danlu.parts.flow import Flow
from danlu.parts.masked import Masked, degrees
from danlu.parts.network import MLP
from danlu.parts.spline import LEAST

HIDDEN, STEPS = (12, 12), 3
NETWORK = MLP(hidden=HIDDEN, activation="relu", initial="uniform")
SPACES = [Space((2,)), Space((5,)), Space((4,), features=1)]

Read = Callable[[Tensor], Tensor]
"""A parameter's value, or its gradient."""
Layer = tuple[Tensor, Tensor]


def library(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"{name} is not installed")


def value_of(parameter: Tensor) -> Tensor:
    return parameter.detach()


def gradient_of(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def linear(layers: Sequence[nn.Module], read: Read) -> list[Layer]:
    """Of each linear layer the matrix ``[out, in]`` and the bias ``[out, 1]``."""
    found: list[Any] = [layer for layer in layers if not isinstance(layer, nn.ReLU)]
    assert len(found) == len(HIDDEN) + 1
    return [(read(layer.weight), read(layer.bias)[:, None]) for layer in found]


def places(flow: Flow, read: Read) -> list[list[Layer]]:
    """The same of a flow of ours, step by step, as they lie in its parameters."""
    if isinstance(flow, Masked):
        stacks, num = [flow.conditioners], flow.num
    else:
        assert isinstance(flow, Coupling)
        stacks, num = list(flow.conditioners), flow.num  # type: ignore[arg-type]
    layers = []
    for stack in stacks:
        tensors = [read(parameter) for parameter in stack.parameters()]
        layers.append(stack.layers(tensors))
    return [list(layers[k % len(layers)][k // len(layers)]) for k in range(num)]


def agrees(
    flow: Flow,
    theirs: nn.Module,
    steps: Callable[[Read], list[list[Layer]]],
    ask: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor]],
    undo: Callable[[Tensor, Tensor | None], Tensor],
) -> None:
    """All that there is to compare.

    Args:
        flow: ours.
        theirs: the other library's.
        steps: its weights, or their gradients, as ours lie.
        ask: its noise, log-determinant and likelihood.
        undo: its inverse.
    """
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=chance, dtype=torch.float64))
        for ours, other in zip(places(flow, value_of), steps(value_of), strict=True):
            for (matrix, bias), (w, b) in zip(ours, other, strict=True):
                matrix.copy_(w)
                bias.copy_(b)
    space = flow.space
    x = torch.randn(9, space.size, generator=chance, dtype=torch.float64)
    context = flow.space.vector(torch.randn(9, 1, generator=chance).double()) if space.features else None
    seen = [x.clone().requires_grad_() for _ in range(2)]
    z, log_det = flow(seen[0], context)
    log_prob = flow.log_prob(seen[0], context)
    wanted = ask(seen[1], context)
    for a, b in zip((z, log_det, log_prob), wanted, strict=True):
        torch.testing.assert_close(a.detach(), b.detach())
    with torch.no_grad():
        torch.testing.assert_close(flow.decode(z, context), undo(wanted[0], context))
        torch.testing.assert_close(flow.decode(z, context), x)
    log_prob.square().sum().backward()
    wanted[2].square().sum().backward()
    torch.testing.assert_close(seen[0].grad, seen[1].grad)
    for ours, other in zip(places(flow, gradient_of), steps(gradient_of), strict=True):
        for pair in zip(ours, other, strict=True):
            for a, b in zip(*pair, strict=True):
                torch.testing.assert_close(a, b)


class Net(nn.Module):
    """A network as nflows asks it; what it says is not scaled down."""

    hidden_features = 1

    def __init__(self, inputs: int, outputs: int, context: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs + context, HIDDEN[0]),
            nn.ReLU(),
            nn.Linear(HIDDEN[0], HIDDEN[1]),
            nn.ReLU(),
            nn.Linear(HIDDEN[1], outputs),
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.layers(x if context is None else torch.cat([x, context], 1))


def of_nflows(space: Space, transform: Callable[..., nn.Module]) -> tuple[nn.Module, Any, Any, Any]:
    """A flow of its couplings, the halves by turns; how it is asked, how it is undone, and its weights."""
    flows, base, distributions = (
        library(f"nflows.{name}") for name in ("flows", "transforms.base", "distributions.normal")
    )
    couplings = [
        transform((torch.arange(space.size) + k) % 2, lambda i, o: Net(i, o, space.context)) for k in range(STEPS)
    ]
    flow = flows.Flow(base.CompositeTransform(couplings), distributions.StandardNormal([space.size])).double()

    def ask(x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        return *flow._transform(x, context), flow.log_prob(x, context)

    def undo(z: Tensor, context: Tensor | None) -> Tensor:
        return flow._transform.inverse(z, context)[0]

    def steps(read: Read) -> list[list[Layer]]:
        return [linear(list(coupling.transform_net.layers), read) for coupling in couplings]

    return flow, steps, ask, undo


@pytest.mark.parametrize("space", SPACES)
def test_additive_coupling_is_that_of_nflows(space: Space) -> None:
    coupling = library("nflows.transforms.coupling")
    ours = NICE(steps=STEPS, prior="normal").density(space, NETWORK, 0).double()
    agrees(ours, *of_nflows(space, coupling.AdditiveCouplingTransform))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("bound", [1.0, 4.0])
def test_spline_coupling_is_that_of_nflows(space: Space, bound: float) -> None:
    """Its slopes are softplus(d) + least without our shift, which makes slopes of 1 of zeros."""
    coupling, bins = library("nflows.transforms.coupling"), 6
    ours = SplineCoupling(steps=STEPS, bins=bins, bound=bound).density(space, NETWORK, 0).double()

    def transform(mask: Tensor, build: Callable[..., nn.Module]) -> nn.Module:
        made: nn.Module = coupling.PiecewiseRationalQuadraticCouplingTransform(
            mask, build, num_bins=bins, tails="linear", tail_bound=bound
        )
        return made

    theirs, steps, ask, undo = of_nflows(space, transform)
    ahead = torch.zeros(3 * bins - 1, 1, 1, dtype=torch.float64)
    ahead[: bins - 1] = math.log(math.expm1(1 - LEAST))

    def ordered(read: Read) -> list[list[Layer]]:
        """Numbers within blocks, not blocks within numbers; and slopes before widths and heights."""
        made = []
        for *hidden, last in steps(read):
            w, b = (part.unflatten(0, (-1, len(ahead))).transpose(0, 1).roll(bins - 1, 0) for part in last)
            b = b - ahead if read is value_of else b
            made.append([*hidden, (w.flatten(0, 1), b.flatten(0, 1))])
        return made

    agrees(ours, theirs, ordered, ask, undo)


def of_zuko(flow: Any) -> tuple[Any, Any]:
    """How a flow of its is asked, and undone."""

    def ask(x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        distribution = flow(context)
        return *distribution.transform.call_and_ladj(x), distribution.log_prob(x)

    def undo(z: Tensor, context: Tensor | None) -> Tensor:
        return flow(context).transform.inv(z)

    return ask, undo


def blocks(layer: Layer) -> Layer:
    """Outputs that are (shift, scale) of each number, as all scales before all shifts."""
    w, b = layer
    return torch.cat([w[1::2], w[0::2]]), torch.cat([b[1::2], b[0::2]])


@pytest.mark.parametrize("space", SPACES)
def test_affine_coupling_is_that_of_zuko(space: Space) -> None:
    zuko = library("zuko")
    theirs = zuko.flows.NICE(space.size, space.context, transforms=STEPS, hidden_features=HIDDEN).double()
    ours = RealNVP(steps=STEPS).density(space, NETWORK, 0).double()

    def steps(read: Read) -> list[list[Layer]]:
        each = [linear(list(transform.hyper), read) for transform in theirs.transform.transforms]
        return [[*hidden, blocks(last)] for *hidden, last in each]

    agrees(ours, theirs, steps, *of_zuko(theirs))


@pytest.mark.parametrize("space", SPACES)
def test_masked_autoregression_is_that_of_zuko(space: Space) -> None:
    """Our hidden units are sorted by degree."""
    zuko = library("zuko")
    theirs = zuko.flows.MAF(space.size, space.context, transforms=STEPS, hidden_features=HIDDEN).double()
    ours = MAF(steps=STEPS).density(space, NETWORK, 0).double()
    size, lowest = space.size, 0 if space.context else 1

    def steps(read: Read) -> list[list[Layer]]:
        made = []
        for transform in theirs.transform.transforms:
            layers = [layer for layer in transform.hyper if not isinstance(layer, nn.ReLU)]
            w, b = zip(*((read(layer.weight) * layer.mask, read(layer.bias)[:, None]) for layer in layers), strict=True)
            seen = layers[0].mask[:, :size].sum(1)
            order = seen.argsort(stable=True)
            assert torch.equal(seen[order], degrees(size, HIDDEN[0], lowest=lowest))
            outputs = torch.cat([2 * torch.arange(size) + 1, 2 * torch.arange(size)])
            made.append(
                [
                    (w[0][order], b[0][order]),
                    (w[1][order][:, order], b[1][order]),
                    (w[2][outputs][:, order], b[2][outputs]),
                ]
            )
        return made

    agrees(ours, theirs, steps, *of_zuko(theirs))
