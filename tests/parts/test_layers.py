"""Norms, linear layers, dropout, feed-forward, readouts, the switch of compilation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.packed import Packed, Targets
from danlu.parts.compiled import compilation, compiled, is_compiling
from danlu.parts.feedforward import GELUFeedForward, SwiGLU
from danlu.parts.linear import Dropout, Linear
from danlu.parts.norm import LayerNorm, RMSNorm
from danlu.parts.readout import Head, Hidden, Likelihood, Logits, LogProbs
from danlu.random import dropout
from strategies import keyed


def random_weights(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, generator=generator)
    return module.double()


def same(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


X = torch.linspace(-3, 4, 15, dtype=torch.float64).reshape(3, 5).sin()


def test_norms_are_torchs() -> None:
    rms, layer = random_weights(RMSNorm(5, 1e-3)), random_weights(LayerNorm(5, 1e-3))
    same(rms(X), F.rms_norm(X, (5,), rms.weight, 1e-3))
    same(layer(X), F.layer_norm(X, (5,), layer.weight, layer.bias, 1e-3))


@pytest.mark.parametrize("kind", [RMSNorm, LayerNorm])
def test_norms_of_half_precision_are_taken_in_single(kind: type[nn.Module]) -> None:
    norm, x = kind(64, 1e-6), (torch.arange(256.0).reshape(4, 64).sin() * 300).bfloat16()
    found = norm(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), norm(x.float()), rtol=0.008, atol=1e-3)  # half of bfloat16's last digit


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_works_in_its_inputs_precision_and_learns_in_its_own(bias: bool) -> None:
    layer = random_weights(Linear(5, 2, bias=bias)).float()
    same(layer.double()(X), F.linear(X, layer.weight, layer.bias))
    half = layer.float()(X.bfloat16())
    half.sum().backward()
    assert half.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())


def test_feed_forwards_are_their_equations() -> None:
    swiglu, gelu = random_weights(SwiGLU(5, 7, bias=True)), random_weights(GELUFeedForward(5, 7, tanh=True))
    linear = {name: F.linear(X, m.weight, m.bias) for name, m in swiglu.named_children() if name != "down_proj"}
    inner = linear["gate_proj"] * linear["gate_proj"].sigmoid() * linear["up_proj"]
    same(swiglu(X), F.linear(inner, swiglu.down_proj.weight, swiglu.down_proj.bias))
    hidden = F.linear(X, gelu.c_fc.weight, gelu.c_fc.bias)
    tanh = 0.5 * hidden * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)))
    same(gelu(X), F.linear(tanh, gelu.c_proj.weight, gelu.c_proj.bias))
    gelu.approximate = "none"
    exact = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    same(gelu(X), F.linear(exact, gelu.c_proj.weight, gelu.c_proj.bias))
    assert GELUFeedForward(5, 7, tanh=False).approximate == "none"


def test_dropout_is_keyed_by_row_and_place_and_nothing_without_keys() -> None:
    layer, keys = Dropout(0.5), keyed(Packed.tree([[0] * 3])).keys
    assert layer(X, None) is X
    assert Dropout(0.0)(X, keys) is X
    here = layer(X, keys)
    layer.place.fill_(9)
    assert torch.equal(layer(X, keys), dropout(X, keys, 9, 0.5))
    assert not torch.equal(layer(X, keys), here)
    assert "place" not in layer.state_dict()


@pytest.mark.parametrize("bias", [False, True])
def test_readouts_ask_what_they_say(bias: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden, weight = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (6, 9))
    head = Head(weight, torch.randn(9, generator=generator, dtype=torch.float64) if bias else None)
    logits = hidden @ weight.t() + (head.bias if bias else 0)
    rows = torch.tensor([4, 0, 4])
    targets = Targets(rows, torch.tensor([1, 2, 3]), torch.tensor([1.0, 0.0, 0.5]))
    log_p = logits.log_softmax(-1)[rows, targets.tokens]
    same(Logits(rows).read(hidden, head), logits[rows])
    same(Hidden(rows).read(hidden, head), hidden[rows])
    same(LogProbs(targets).read(hidden, head), log_p)
    plain = Likelihood(targets).read(hidden, head)
    same(plain.loss, -(log_p * targets.weights).sum())
    same(plain.nll, plain.loss)
    smooth = Likelihood(targets, label_smoothing=0.2, z_loss=0.1).read(hidden, head)
    mean, z = logits.log_softmax(-1).mean(1)[rows], logits.logsumexp(1)[rows] ** 2
    same(smooth.loss, ((-0.8 * log_p - 0.2 * mean + 0.1 * z) * targets.weights).sum())
    same(smooth.nll, plain.loss)


def test_readouts_of_nothing_are_empty() -> None:
    hidden, head, none = torch.randn(3, 5), Head(torch.randn(9, 5)), torch.zeros(0, dtype=torch.int64)
    assert float(Likelihood(Targets.none()).read(hidden, head).loss) == 0
    assert LogProbs(Targets.none()).read(hidden, head).shape == (0,)
    assert Logits(none).read(hidden, head).shape == (0, 9)
    assert Hidden(none).read(hidden, head).shape == (0, 5)


def test_compilation_is_a_switch_that_goes_back() -> None:
    seen: list[bool] = []

    @compiled
    def double(x: Tensor) -> Tensor:
        """Twice x."""
        seen.append(torch.compiler.is_compiling())
        return x * 2

    assert double.__doc__ == "Twice x."
    assert not is_compiling()
    assert torch.equal(double(X), X * 2)
    assert seen == [False]
    with compilation(True):
        assert is_compiling()
        with compilation(False):
            assert not is_compiling()
        assert is_compiling()
    with pytest.raises(RuntimeError, match="stop"), compilation(True):
        raise RuntimeError("stop")
    assert not is_compiling()
    with compilation(True):
        assert torch.equal(double(X), X * 2)
    assert seen[-1]
