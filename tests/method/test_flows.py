"""What normalising flows promise: all mass is there, and what can be learned in closed form is learned."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from danlu.density import Rows, Space
from danlu.errors import UnsupportedError
from danlu.parts.flow import Chain, Flow
from danlu.parts.network import MLP
from danlu.parts.spline import RationalQuadratic
from danlu.registry import lookup
from densities import SMALL, context_of, disturbed, gradients, mass, rows_of, volumes

FLOWS = ("nice", "realnvp", "maf", "spline_coupling")
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {"mixing": mixing}) for name in FLOWS for mixing in ("alternate", "shuffle")),
    ("nice", {"prior": "normal"}),
    ("realnvp", {"largest_slope": 2.0}),
    ("spline_coupling", {"bins": 2, "bound": 1.0}),
]


def flow_of(name: str, space: Space, network: MLP | None = SMALL, seed: int = 0, **fields: Any) -> Flow:
    flow: Flow = lookup("method", name)(**{"steps": 4, **fields}).density(space, network, seed)
    return flow


def whole(flow: Flow, context: Tensor | None = None) -> float:
    """The integral of its density; the logistic prior's tails are long, and a spline has corners in its slope."""
    spline = isinstance(flow, Chain) and isinstance(flow.bijection, RationalQuadratic)
    reach, points = (8.0, 401) if spline else (30.0, 601)
    return mass(
        lambda x: flow.log_prob(x, None if context is None else context.expand(len(x), -1)), reach=reach, points=points
    )


@pytest.mark.parametrize(("name", "fields"), VARIANTS)
def test_all_mass_is_there(name: str, fields: dict[str, Any]) -> None:
    assert whole(disturbed(flow_of(name, Space((2,)), **fields), scale=0.15)) == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("space", [Space((2,), classes=2), Space((2,), features=1)])
def test_all_mass_is_there_under_each_condition(name: str, space: Space) -> None:
    flow = disturbed(flow_of(name, space), scale=0.15)
    for condition in ([0], [1]):
        told = space.vector(torch.tensor(condition) if space.classes else torch.tensor([condition]).double())
        assert told is not None
        assert whole(flow, told.double()) == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("mixing", ["alternate", "shuffle"])
@pytest.mark.parametrize("size", [2, 5, 8])
def test_in_float32_rows_come_back(name: str, mixing: str, size: int) -> None:
    flow = disturbed(flow_of(name, Space((size,)), mixing=mixing), scale=0.1).float()
    x = torch.randn(64, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(flow.decode(flow.encode(x)), x, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("space", [Space((3,)), Space((4,), classes=2), Space((5,), features=2)])
@pytest.mark.parametrize("activation", ["relu", "tanh", "elu", "silu", "gelu"])
def test_written_out_gradients_are_those_of_differences(name: str, space: Space, activation: Any) -> None:
    """Of rows, of what they are conditioned on, and of every weight; `gradcheck` takes central differences."""
    network = MLP(hidden=(5, 4), activation=activation, initial="uniform")
    flow = disturbed(flow_of(name, space, network, steps=2, mixing="shuffle"))
    rows = rows_of(space, 3)
    context = context_of(space, rows)
    inputs = [rows.x.requires_grad_(), *flow.parameters()]
    if context is not None:
        inputs.append(context.requires_grad_())

    def answer(*_: Tensor) -> tuple[Tensor, Tensor]:
        z, log_det = flow(rows.x, context)
        return z, log_det

    assert torch.autograd.gradcheck(answer, inputs, eps=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", FLOWS)
def test_without_hidden_layers_steps_are_linear_in_what_steers_them(name: str) -> None:
    flow = disturbed(flow_of(name, Space((4,), classes=2), MLP(hidden=())))
    rows = rows_of(flow.space, 3)
    context = context_of(flow.space, rows)
    with torch.no_grad():
        torch.testing.assert_close(flow.decode(flow.encode(rows.x, context), context), rows.x)


@pytest.mark.parametrize("name", FLOWS)
def test_at_the_start_rows_are_their_own_noise(name: str) -> None:
    flow = flow_of(name, Space((5,), classes=3), None)
    rows = rows_of(flow.space, 16)
    context = context_of(flow.space, rows)
    z, log_det = flow(rows.x.float(), None if context is None else context.float())
    torch.testing.assert_close(z.detach(), rows.x.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_det.detach(), torch.zeros(16), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", FLOWS)
def test_no_rows_are_nothing(name: str) -> None:
    method = lookup("method", name)()
    flow = method.density(Space((4,), classes=2), SMALL, 0)
    nothing = replace(rows_of(flow.space, 0), x=torch.zeros(0, 4))
    outcome = method.fit(flow, nothing)
    assert float(outcome.losses["nll"].detach()) == 0.0
    assert not any(gradient.any() for gradient in gradients(flow, outcome.losses["nll"]).values())
    context = context_of(flow.space, nothing)
    with torch.no_grad():
        assert flow.decode(nothing.x, None if context is None else context.float()).shape == (0, 4)


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_of_images_that_has_no_form_for_them_takes_the_numbers_they_have(name: str) -> None:
    image, flat = (disturbed(flow_of(name, Space(shape))) for shape in ((1, 3, 2), (6,)))
    x = rows_of(Space((1, 3, 2)), 4).x
    with torch.no_grad():
        torch.testing.assert_close(image.log_prob(x), flat.log_prob(x.flatten(1)))
        torch.testing.assert_close(image.encode(x).flatten(1), flat.encode(x.flatten(1)))
        torch.testing.assert_close(image.decode(x).flatten(1), flat.decode(x.flatten(1)))


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("mixing", ["alternate", "shuffle"])
def test_saved_weights_are_all_there_is(name: str, mixing: str) -> None:
    flow, other = (disturbed(flow_of(name, Space((6,)), mixing=mixing, seed=seed), seed) for seed in (0, 1))
    x = rows_of(flow.space, 4).x
    with torch.no_grad():
        assert not torch.allclose(flow.log_prob(x), other.log_prob(x))
        copied, state = copy.deepcopy(flow), copy.deepcopy(other.state_dict())
        other.load_state_dict(flow.state_dict())
        for one in (other, copied):
            assert torch.equal(flow.log_prob(x), one.log_prob(x))
            assert torch.equal(flow.decode(x), one.decode(x))
        before = flow.log_prob(x)
        copied.load_state_dict(state)  # which moves the copy, and nothing else
        assert not torch.allclose(copied.log_prob(x), before)
        assert torch.equal(flow.log_prob(x), before)


@pytest.mark.parametrize("name", [name for name in FLOWS if name != "maf"])
def test_what_is_made_of_noise_can_be_differentiated(name: str) -> None:
    """Its Jacobian is the inverse of the noise's, and weights have gradients too."""
    flow = disturbed(flow_of(name, Space((4,))))
    x = rows_of(flow.space, 1).x
    z = flow.encode(x).detach()
    there, back = (
        torch.autograd.functional.jacobian(lambda v, f=f: f(v)[0], at)[:, 0]
        for f, at in ((flow.encode, x), (flow.decode, z))
    )
    torch.testing.assert_close(there @ back, torch.eye(4, dtype=torch.float64))
    made = gradients(flow, flow.decode(z).sum())
    assert all(gradient.any() for gradient in made.values())


@pytest.mark.parametrize(("name", "fields"), VARIANTS)
@pytest.mark.parametrize("size", [2, 5])
def test_the_log_determinant_is_that_of_the_jacobian(name: str, fields: dict[str, Any], size: int) -> None:
    flow = disturbed(flow_of(name, Space((size,)), **fields))
    x = rows_of(flow.space, 4).x * 2
    torch.testing.assert_close(flow(x)[1], volumes(flow.encode, x, None))


@pytest.mark.parametrize("name", FLOWS)
def test_a_network_that_is_none_of_numbers_is_refused(name: str) -> None:
    from danlu.engine.schedule import Cosine

    with pytest.raises(UnsupportedError, match="network is mlp, not cosine"):
        lookup("method", name)().density(Space((4,)), Cosine(), 0)


@pytest.mark.parametrize("name", FLOWS)
def test_of_gaussian_rows_the_entropy_is_reached(name: str) -> None:
    """Of a correlated Gaussian, whose negative log-likelihood has a least value that is known: its entropy."""
    chance = torch.Generator().manual_seed(1)
    factor = torch.tensor([[1.0, 0.0], [0.9, 0.4]])
    x = torch.randn(4096, 2, generator=chance) @ factor.T
    entropy = math.log(2 * math.pi * math.e) + float(torch.linalg.slogdet(factor).logabsdet)
    prior = {"prior": "normal"} if name == "nice" else {}
    method = lookup("method", name)(**{"steps": 4, **prior})
    flow = method.density(Space((2,)), MLP(hidden=(16,), activation="relu", initial="uniform"), 0)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
    for step in range(250):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 250)
        rows = Rows.of(x[torch.randint(len(x), (256,), generator=chance)], None, torch.arange(256))
        optimizer.zero_grad()
        (method.fit(flow, rows).losses["nll"] / 256).backward()
        optimizer.step()
    fresh = torch.randn(20000, 2, generator=chance) @ factor.T
    with torch.no_grad():
        nll = -float(flow.log_prob(fresh).mean())
        made = flow.decode(flow.noise(Rows.of(fresh, None, torch.arange(20000)).keys))
    assert entropy - 0.03 < nll < entropy + 0.05
    torch.testing.assert_close(made.T.cov(), factor @ factor.T, rtol=0, atol=0.15)


def test_a_chain_is_one_operation_only_where_gradients_are_taken() -> None:
    flow = disturbed(flow_of("realnvp", Space((4,))))
    assert isinstance(flow, Chain)
    x = rows_of(flow.space, 3).x
    with torch.no_grad():
        plain = flow(x)
    for a, b in zip(plain, flow(x), strict=True):
        assert torch.equal(a, b.detach())
        assert b.grad_fn is not None
        assert not a.requires_grad
    first = torch.autograd.grad(flow.log_prob(x).sum(), flow.parameters())
    loss = flow.log_prob(x).sum()
    for _ in range(2):  # a graph that is kept can be gone through again
        again = torch.autograd.grad(loss, list(flow.parameters()), retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
