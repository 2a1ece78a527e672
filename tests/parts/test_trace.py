"""Traces: the exact ones are those of autograd's Jacobian, the estimates are right on average."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from danlu.parts import trace
from danlu.parts.nets import network_of
from danlu.parts.network import MLP
from danlu.parts.trace import ByVectors, OfLayers, keys_of, probes_of
from danlu.random import token_keys

D, E, C, N = 3, 4, 2, 5
HIDDEN = [(), (7,), (7, 6), (7, 6, 5)]
ACTIVATIONS = ["tanh", "relu", "elu", "silu", "gelu"]


def network(hidden: tuple[int, ...], activation: str, context: int) -> torch.nn.Module:
    config = MLP(hidden=hidden, activation=activation, initial="uniform")  # type: ignore[arg-type]
    return network_of(config, (D,), (D,), E + context, seed=1).double()


def given(context: int) -> tuple[Tensor, Tensor, Tensor | None]:
    chance = torch.Generator().manual_seed(2)
    x = torch.randn(N, D, dtype=torch.float64, generator=chance)
    clock = torch.randn(E, dtype=torch.float64, generator=chance)
    return x, clock, torch.randn(N, context, dtype=torch.float64, generator=chance) if context else None


def jacobians(net: torch.nn.Module, x: Tensor, clock: Tensor, context: Tensor | None) -> list[Tensor]:
    def one(x: Tensor, i: int) -> Tensor:
        told = clock if context is None else torch.cat([clock, context[i]])
        return net(x[None], told[None])[0]

    return [torch.autograd.functional.jacobian(lambda x, i=i: one(x, i), x[i]) for i in range(len(x))]


def ways(
    net: torch.nn.Module, activation: str, context: Tensor | None, probes: Tensor | None
) -> dict[str, ByVectors | OfLayers]:
    weights = list(net.parameters())
    return {
        "vectors": ByVectors(net, net.parameters(), context, probes),
        "layers": OfLayers(weights, activation, (D, E), context, probes),  # type: ignore[arg-type]
    }


@pytest.mark.parametrize("context", [0, C])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("probed", [False, True])
def test_a_trace_is_that_of_the_jacobian(hidden: tuple[int, ...], activation: str, context: int, probed: bool) -> None:
    net = network(hidden, activation, context)
    x, clock, told = given(context)
    probes = torch.randn(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) if probed else None
    each = jacobians(net, x, clock, told)
    expected = torch.stack(
        [
            j.trace() if probes is None else v @ j @ v
            for j, v in zip(each, probes if probes is not None else x, strict=True)
        ]
    )
    whole = clock.expand(N, -1) if told is None else torch.cat([clock.expand(N, -1), told], 1)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            for name, traced in ways(net, activation, told, probes).items():
                y, found = traced(x, clock)
                torch.testing.assert_close(y, net(x, whole), msg=lambda m, n=name: f"{n}: {m}")
                torch.testing.assert_close(found, expected, msg=lambda m, n=name: f"{n}: {m}")
                assert y.requires_grad is grad


@pytest.mark.parametrize("context", [0, C])
@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a != "relu"])
@pytest.mark.parametrize("hidden", HIDDEN[1:])
@pytest.mark.parametrize("probed", [False, True])
def test_the_gradient_of_a_trace_is_the_same_both_ways(
    hidden: tuple[int, ...], activation: str, context: int, probed: bool
) -> None:
    net = network(hidden, activation, context)
    x, clock, told = given(context)
    probes = torch.randn(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) if probed else None
    x.requires_grad_()
    weigh = torch.linspace(1, 2, N, dtype=torch.float64)
    found = {}
    for name, traced in ways(net, activation, told, probes).items():
        y, tr = traced(x, clock)
        found[name] = torch.autograd.grad((y.sin().sum(1) * weigh + tr * weigh).sum(), [x, *net.parameters()])
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other)
    assert found["layers"][0].abs().min() > 0


def test_many_vectors_go_through_in_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network((7, 6), "tanh", 0)
    x, clock, _ = given(0)
    y, found = ByVectors(net, net.parameters(), None, None)(x, clock)
    monkeypatch.setattr(trace, "_ROWS", 2 * N)
    again = ByVectors(net, net.parameters(), None, None)(x, clock)
    torch.testing.assert_close(again[0], y)
    torch.testing.assert_close(again[1], found)


@torch.no_grad()
@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_hutchinsons_mean_is_the_exact_trace(probe: str) -> None:
    num = 4000
    net = network((7, 6), "tanh", 0)
    x, clock, _ = given(0)
    exact = OfLayers(list(net.parameters()), "tanh", (D, E), None, None)(x, clock)[1]
    for i in range(2):
        keys = token_keys(9, torch.arange(num), torch.zeros(num, dtype=torch.int64))
        probes = probes_of(keys, D, probe).double()  # type: ignore[arg-type]
        one = OfLayers(list(net.parameters()), "tanh", (D, E), None, probes)(x[i].expand(num, -1), clock)[1]
        error = float(one.mean() - exact[i]) / float(one.std() / num**0.5)
        assert abs(error) < 3
        assert float(one.std()) > 0.01, "an estimate is one"
    second = probes.T @ probes / num
    torch.testing.assert_close(second, torch.eye(D, dtype=torch.float64), atol=0.1, rtol=0)
    if probe == "rademacher":
        assert set(probes.unique().tolist()) == {-1.0, 1.0}


def test_rows_are_their_own_keys() -> None:
    x = torch.randn(1000, 2, 3, generator=torch.Generator().manual_seed(0))
    keys = keys_of(x)
    assert keys.dtype == torch.int32
    assert len(keys.unique()) == 1000
    assert torch.equal(keys_of(x[[5, 3]]), keys[[5, 3]])
    assert torch.equal(keys_of(x[:, :, [0, 1, 2]]), keys)
    assert not (keys_of(x.flip(2)) == keys).any(), "the same numbers in another order are another row"
    assert abs(float((keys < 0).double().mean()) - 0.5) < 0.05
