"""Networks as recipes name them: shapes, contexts, weights by the seed, and images that do not see one another."""

from __future__ import annotations

import copy
import itertools
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from danlu.config import Config
from danlu.errors import UnsupportedError
from danlu.parts.attention import attention
from danlu.parts.attention_alike import Alike
from danlu.parts.mlp import Networks
from danlu.parts.nets import network_of
from danlu.parts.network import MLP, Activation, Patches, UNet
from danlu.parts.patches import packed_images

IMAGES: list[tuple[Config, tuple[int, int, int]]] = [
    (UNet(width=8, groups=4), (1, 8, 8)),
    (UNet(width=4, factors=(1, 2, 3), blocks=2), (3, 7, 9)),
    (UNet(width=6, factors=(1,)), (2, 1, 5)),
    (Patches(width=12, heads=3, layers=2), (1, 8, 8)),
    (Patches(width=8, heads=2, layers=1, patch=3, feedforward=2), (3, 6, 9)),
    (MLP(hidden=(9,), activation="silu", initial="uniform"), (2, 3, 4)),
]
ROWS: list[tuple[Config | None, tuple[int, ...]]] = [(None, (2,)), (MLP(hidden=(7, 5), activation="elu"), (3,))]
IDS = [f"{type(config).__name__}-{shape}" for config, shape in [*IMAGES, *ROWS]]


def made(config: Config | None, shape: tuple[int, ...], context: int = 5, seed: int = 1) -> nn.Module:
    """A network of doubles that ignores nothing: weights that begin at zero are moved."""
    network = network_of(config, shape, (4, *shape[1:]), context, seed).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)).double(), alpha=0.1)
    return network


def given(shape: tuple[int, ...], context: int = 5, num: int = 6) -> tuple[Tensor, Tensor | None]:
    chance = torch.Generator().manual_seed(3)
    x = torch.randn(num, *shape, generator=chance).double()
    return x, torch.randn(num, context, generator=chance).double() if context else None


@pytest.mark.parametrize("context", [0, 5])
@pytest.mark.parametrize(("config", "shape"), [*IMAGES, *ROWS], ids=IDS)
def test_rows_in_rows_out_each_for_itself(config: Config | None, shape: tuple[int, ...], context: int) -> None:
    network, (x, told) = made(config, shape, context), given(shape, context)
    whole = network(x, told)
    assert whole.shape == (6, 4, *shape[1:])
    for i in range(6):
        alone = network(x[i : i + 1], None if told is None else told[i : i + 1])
        torch.testing.assert_close(alone[0], whole[i])
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(network(x[order], None if told is None else told[order]), whole[order])


@pytest.mark.parametrize(("config", "shape"), [*IMAGES, *ROWS], ids=IDS)
def test_gradients_reach_every_weight_and_are_right(config: Config | None, shape: tuple[int, ...]) -> None:
    """Every input and every number of the context matters; a directional derivative is that of finite differences."""
    network, (x, told) = made(config, shape), given(shape)
    assert told is not None
    x.requires_grad_()
    told.requires_grad_()
    weights = torch.randn(6, 4, *shape[1:], generator=torch.Generator().manual_seed(4)).double()
    (network(x, told) * weights).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert x.grad is not None
    assert told.grad is not None
    assert (x.grad != 0).all()
    assert (told.grad != 0).all()
    way = torch.randn(x.shape, generator=torch.Generator().manual_seed(5)).double()
    with torch.no_grad():
        ahead, behind = ((network(x + sign * 1e-5 * way, told) * weights).sum() for sign in (1, -1))
    torch.testing.assert_close((x.grad * way).sum(), (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("config", "shape"), [*IMAGES, *ROWS], ids=IDS)
def test_gradients_can_be_differentiated_again(config: Config | None, shape: tuple[int, ...]) -> None:
    network, (x, told) = made(config, shape), given(shape, num=2)
    x.requires_grad_()
    (first,) = torch.autograd.grad(network(x, told).square().sum(), x, create_graph=True)
    first.square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize(("config", "shape"), [*IMAGES, *ROWS], ids=IDS)
def test_weights_follow_from_the_seed(config: Config | None, shape: tuple[int, ...]) -> None:
    outputs = (4, *shape[1:])
    torch.manual_seed(0)
    first = network_of(config, shape, outputs, 5, 7)
    torch.manual_seed(1)
    again, other = network_of(config, shape, outputs, 5, 7), network_of(config, shape, outputs, 5, 8)
    x, told = (t.float() for t in given(shape) if t is not None)
    assert torch.equal(first(x, told), again(x, told))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert all(parameter.isfinite().all() for parameter in first.parameters())
    silent = network_of(config, shape, outputs, 5, 7, zero_last=True)
    assert not silent(x, told).any()
    silent(x, told).sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in silent.parameters())


@pytest.mark.parametrize(("config", "shape"), [*IMAGES, *ROWS], ids=IDS)
def test_outputs_at_the_start_are_of_the_size_of_inputs(config: Config | None, shape: tuple[int, ...]) -> None:
    x, told = (t.float() for t in given(shape, num=64) if t is not None)
    assert 0.05 < float(network_of(config, shape, (4, *shape[1:]), 5, 0)(x, told).detach().std()) < 5


@pytest.mark.parametrize(("config", "shape"), [*IMAGES, *ROWS], ids=IDS)
def test_a_copy_and_what_was_saved_say_the_same(config: Config | None, shape: tuple[int, ...]) -> None:
    network, (x, told) = made(config, shape), given(shape)
    other = network_of(config, shape, (4, *shape[1:]), 5, 99).double()
    other.load_state_dict(network.state_dict())
    for same in (other, copy.deepcopy(network)):
        assert torch.equal(same(x, told), network(x, told))


@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("hidden", [(), (5,), (7, 4)])
def test_fully_connected_is_torchs_chain_of_layers(activation: Activation, hidden: tuple[int, ...]) -> None:
    network = made(MLP(hidden=hidden, activation=activation), (3,), 2)
    x, told = given((3,), 2)
    assert told is not None
    chain = nn.Sequential()
    act = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU, "elu": nn.ELU}[activation]
    widths = (5, *hidden, 4)
    for inputs, outputs in itertools.pairwise(widths):
        chain.append(nn.Linear(inputs, outputs))
        chain.append(act())
    chain = chain[:-1].double()
    with torch.no_grad():
        for mine, theirs in zip(network.parameters(), chain.parameters(), strict=True):
            theirs.copy_(mine)
    torch.testing.assert_close(network(x, told), chain(torch.cat([x, told], 1)))


def test_the_default_start_is_torchs() -> None:
    network = network_of(MLP(hidden=(4000,), initial="uniform"), (9,), (2,), 0, 0)
    first, _, last, _ = network.parameters()
    theirs = nn.Linear(9, 4000)
    assert float(first.detach().abs().max()) == pytest.approx(float(theirs.weight.detach().abs().max()), rel=0.01)
    assert float(first.detach().std()) == pytest.approx(float(theirs.weight.detach().std()), rel=0.02)
    assert float(last.detach().abs().max()) <= 4000**-0.5


def test_attention_of_patches_is_that_of_the_pack() -> None:
    """The batched way against the definition, and against the device's own."""
    sight = packed_images(5, 6).sight
    q, k, v = torch.randn(3, 30, 4, 8, generator=torch.Generator().manual_seed(0)).double().unbind()
    expected = torch.zeros_like(q)
    for i in range(5):
        rows = slice(6 * i, 6 * i + 6)
        probabilities = (torch.einsum("qhd,khd->hqk", q[rows], k[rows]) * 8**-0.5).softmax(-1)
        expected[rows] = torch.einsum("hqk,khd->qhd", probabilities, v[rows])
    for twice in (False, True):
        torch.testing.assert_close(attention(q, k, v, sight, backend=Alike(6, twice=twice)), expected)
    torch.testing.assert_close(attention(q, k, v, sight), expected)
    capped = attention(q, k, v, sight, softcap=1.0, backend=Alike(6))
    torch.testing.assert_close(capped, attention(q, k, v, sight, softcap=1.0))


@pytest.mark.parametrize(
    ("config", "shape", "said"),
    [
        (UNet(), (2,), r"unet is for images, and a row here is of shape \(2,\). Use mlp"),
        (Patches(), (2,), r"patches is for images, and a row here is of shape \(2,\)"),
        (UNet(factors=(1, 1, 1)), (1, 3, 8), "an image of 3 by 8 pixels cannot be halved 2 times. Give fewer factors."),
        (Patches(patch=3), (1, 8, 12), "an image of 8 by 12 pixels is not made of patches of 3 by 3. .* 1, 2, 4."),
    ],
)
def test_what_a_network_is_not_for(config: Config, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(UnsupportedError, match=said):
        network_of(config, shape, shape, 0, 0)


@pytest.mark.parametrize("activation", ["silu", "gelu", "elu"])
def test_networks_that_act_refuse_what_they_have_no_slope_of(activation: Activation) -> None:
    with pytest.raises(UnsupportedError, match=f"made for tanh and relu, not for {activation}. Use one of these."):
        Networks(2, (1,), MLP(activation=activation), seed=0)


def test_heads_divide_the_width() -> None:
    with pytest.raises(ValueError, match="a width of 10 is not divided by 3 heads"):
        Patches(width=10, heads=3)
