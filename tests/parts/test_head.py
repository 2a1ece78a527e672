"""Logits that are scaled and capped: every readout gives what autograd gives of the equation written out."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from danlu.packed import Targets
from danlu.parts import cross_entropy as module
from danlu.parts.compiled import compilation
from danlu.parts.readout import Head, Likelihood, Logits, LogProbs

WIDTH = 6


def problem(num: int, vocabulary: int, *, bias: bool, seed: int = 0) -> tuple[Tensor, Head, Targets]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).requires_grad_()

    head = Head(normal(vocabulary, WIDTH), normal(vocabulary) if bias else None)
    rows = torch.randint(max(num, 1), (2 * num,), generator=generator)
    tokens = torch.randint(vocabulary, (2 * num,), generator=generator)
    return normal(num, WIDTH), head, Targets(rows, tokens, torch.randint(0, 4, (2 * num,), generator=generator) / 2)


def written_out(hidden: Tensor, head: Head) -> Tensor:
    logits = hidden @ head.weight.t()
    logits = head.scale * (logits if head.bias is None else logits + head.bias)
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def inputs(hidden: Tensor, head: Head) -> list[Tensor]:
    return [x for x in (hidden, head.weight, head.bias) if x is not None]


def same(found: object, expected: object) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@given(
    num=st.integers(0, 5),
    vocabulary=st.integers(2, 11),
    bias=st.booleans(),
    scale=st.sampled_from([1.0, 0.25, 3.0]),
    softcap=st.sampled_from([None, 0.5, 2.0, 30.0]),
    smoothing=st.sampled_from([0.0, 0.3]),
    z_loss=st.sampled_from([0.0, 0.1]),
    rows=st.integers(1, 10),
    seed=st.integers(0, 99),
)
def test_every_readout_and_gradient_is_that_of_the_equation(
    num: int,
    vocabulary: int,
    bias: bool,
    scale: float,
    softcap: float | None,
    smoothing: float,
    z_loss: float,
    rows: int,
    seed: int,
) -> None:
    hidden, head, targets = problem(num, vocabulary, bias=bias, seed=seed)
    head = replace(head, scale=scale, softcap=softcap)
    logits = written_out(hidden, head)[targets.rows]
    with patch.object(module, "chunk_rows", lambda *_: rows):
        sums = Likelihood(targets, label_smoothing=smoothing, z_loss=z_loss).read(hidden, head)
        log_probs = LogProbs(targets).read(hidden, head)
        mixture = torch.linspace(-2, 3, len(targets), dtype=torch.float64)
        gradients = torch.autograd.grad((log_probs * mixture).sum(), inputs(hidden, head))
    same(Logits(targets.rows).read(hidden, head), logits)
    expected = -F.cross_entropy(logits, targets.tokens, reduction="none")
    same(log_probs, expected)
    same(gradients, torch.autograd.grad((expected * mixture).sum(), inputs(hidden, head), retain_graph=True))
    smooth = F.cross_entropy(logits, targets.tokens, reduction="none", label_smoothing=smoothing)
    loss = (targets.weights * (smooth + z_loss * logits.logsumexp(1).square())).sum()
    same(sums.loss, loss)
    same(sums.nll, -(targets.weights * expected).sum().detach())
    same(torch.autograd.grad(3 * sums.loss, inputs(hidden, head)), torch.autograd.grad(3 * loss, inputs(hidden, head)))


@pytest.mark.parametrize("bias", [False, True])
def test_a_scale_of_one_and_no_cap_change_no_bit(bias: bool) -> None:
    hidden, head, targets = problem(7, 9, bias=bias)
    asked = replace(head, scale=1.0, softcap=None)
    for readout in (Likelihood(targets, 0.1, 0.1), LogProbs(targets), Logits(targets.rows)):
        found, expected = readout.read(hidden, asked), readout.read(hidden, head)
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)
    assert head.scaled(hidden)[0] is hidden


def test_half_precision_is_near_single() -> None:
    hidden, head, targets = problem(20, 9, bias=True)
    single = Head(head.weight.detach().float(), head.bias.detach().float(), scale=0.5, softcap=2.0)
    expected = Likelihood(targets).read(hidden.float(), single).loss
    found = Likelihood(targets).read(hidden.bfloat16(), single).loss
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=0)
    assert found.dtype == torch.float32


def test_compiled_caps_agree_whatever_they_are() -> None:
    hidden, head, targets = problem(20, 9, bias=True)
    for softcap in (2.0, 5.0):
        capped = replace(head, softcap=softcap)
        with compilation(True), patch.object(module, "chunk_rows", lambda *_: 16):
            found = Likelihood(targets).read(hidden, capped)
        expected = Likelihood(targets).read(hidden, capped)
        same(found.loss, expected.loss)
        same(*(torch.autograd.grad(x.loss, inputs(hidden, capped)) for x in (found, expected)))
