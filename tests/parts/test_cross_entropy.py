from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from danlu.parts import cross_entropy as module
from danlu.parts.compiled import compilation
from danlu.parts.cross_entropy import CrossEntropy, chunk_rows, cross_entropy, log_probs

WIDTH = 6


class Problem:
    """Rows, a head and what is to be predicted."""

    def __init__(
        self, num: int, vocabulary: int, *, bias: bool, dtype: torch.dtype = torch.float64, seed: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

        self.hidden, self.weight = normal(num, WIDTH), normal(vocabulary, WIDTH)
        self.bias = normal(vocabulary) if bias else None
        self.tokens = torch.randint(vocabulary, (num,), generator=generator)
        self.weights = torch.randint(0, 4, (num,), generator=generator).float() / 2

    @property
    def inputs(self) -> list[Tensor]:
        return [x for x in (self.hidden, self.weight, self.bias) if x is not None]

    def logits(self) -> Tensor:
        logits = self.hidden @ self.weight.t()
        return logits if self.bias is None else logits + self.bias

    def expected(self, smoothing: float, z_loss: float) -> CrossEntropy:
        """By torch's own functions, on all logits at once."""
        logits, weights = self.logits(), self.weights.to(self.hidden.dtype)
        smooth = F.cross_entropy(logits, self.tokens, reduction="none", label_smoothing=smoothing)
        plain = F.cross_entropy(logits, self.tokens, reduction="none")
        z = logits.logsumexp(1).square()
        hit = (logits.argmax(1) == self.tokens).to(weights.dtype)
        return CrossEntropy(*((weights * x).sum() for x in (smooth + z_loss * z, plain, z, hit)))

    def found(self, smoothing: float, z_loss: float) -> CrossEntropy:
        options = {"label_smoothing": smoothing, "z_loss": z_loss}
        return cross_entropy(self.hidden, self.weight, self.bias, self.tokens, self.weights, **options)


def same(a: Any, b: Any, tolerance: float = 1e-10) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


@given(
    num=st.integers(0, 9),
    vocabulary=st.integers(2, 11),
    bias=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.1, 0.7]),
    z_loss=st.sampled_from([0.0, 0.01, 1.0]),
    rows=st.integers(1, 10),
    seed=st.integers(0, 99),
)
def test_sums_and_gradients_are_torchs_however_the_rows_are_cut(
    num: int, vocabulary: int, bias: bool, smoothing: float, z_loss: float, rows: int, seed: int
) -> None:
    problem = Problem(num, vocabulary, bias=bias, seed=seed)
    with patch.object(module, "chunk_rows", lambda *_: rows):
        found = problem.found(smoothing, z_loss)
    expected = problem.expected(smoothing, z_loss)
    same([x.detach() for x in found], [x.detach() for x in expected])
    assert found.loss.requires_grad
    assert not any(x.requires_grad for x in found[1:])
    same(torch.autograd.grad(3 * found.loss, problem.inputs), torch.autograd.grad(3 * expected.loss, problem.inputs))


@given(
    num=st.integers(0, 9),
    vocabulary=st.integers(2, 11),
    bias=st.booleans(),
    rows=st.integers(1, 10),
    kept=st.integers(0, 10),
    seed=st.integers(0, 99),
)
def test_log_probs_each_have_their_own_gradient(
    num: int, vocabulary: int, bias: bool, rows: int, kept: int, seed: int
) -> None:
    """However many rows' logits are kept for backward, and however many are made again."""
    problem = Problem(num, vocabulary, bias=bias, seed=seed)
    mixture = torch.linspace(-2, 3, num, dtype=torch.float64)
    room = kept * vocabulary * problem.hidden.element_size()
    with patch.object(module, "chunk_rows", lambda *_: rows), patch.object(module, "KEPT_BYTES", room):
        found = log_probs(problem.hidden, problem.weight, problem.bias, problem.tokens)
        gradients = torch.autograd.grad((found * mixture).sum(), problem.inputs)
    expected = -F.cross_entropy(problem.logits(), problem.tokens, reduction="none")
    same([found.detach()], [expected.detach()])
    same(gradients, torch.autograd.grad((expected * mixture).sum(), problem.inputs))


@pytest.mark.parametrize("num", [127, 128, 129, 256, 300])
def test_rows_at_the_edges_of_chunks(num: int) -> None:
    with patch.object(module, "CHUNK_BYTES", 1):
        assert chunk_rows(5, torch.float32) == 128
        problem = Problem(num, 5, bias=True)
        found = problem.found(0.1, 0.1)
        gradients = torch.autograd.grad(found.loss, problem.inputs)
    expected = problem.expected(0.1, 0.1)
    same([x.detach() for x in found], [x.detach() for x in expected])
    same(gradients, torch.autograd.grad(expected.loss, problem.inputs))


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias", "all"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(frozen: str) -> None:
    problem, whole = Problem(7, 5, bias=True), Problem(7, 5, bias=True)
    names = [frozen] if frozen != "all" else ["hidden", "weight", "bias"]
    for name in names:
        getattr(problem, name).requires_grad_(False)
    found, expected = problem.found(0.1, 0.1), whole.expected(0.1, 0.1)
    probabilities = log_probs(problem.hidden, problem.weight, problem.bias, problem.tokens)
    assert found.loss.requires_grad == probabilities.requires_grad == (frozen != "all")
    same([found.loss.detach()], [expected.loss.detach()])
    if frozen != "all":
        found.loss.backward()
        probabilities.sum().backward()
        twice = torch.autograd.grad(
            expected.loss - F.cross_entropy(whole.logits(), whole.tokens, reduction="sum"), whole.inputs
        )
        for name, gradient in zip(("hidden", "weight", "bias"), twice, strict=True):
            found_gradient = getattr(problem, name).grad
            assert (found_gradient is None) == (name == frozen)
            same([] if name == frozen else [found_gradient], [] if name == frozen else [gradient])


def test_without_gradients_the_sums_are_the_same() -> None:
    problem = Problem(7, 5, bias=True)
    with torch.no_grad():
        same(problem.found(0.1, 0.1), problem.expected(0.1, 0.1))


def test_weights_of_zero_leave_a_target_out() -> None:
    problem = Problem(6, 5, bias=False)
    problem.weights[2:] = 0
    (whole,) = torch.autograd.grad(problem.found(0.1, 0.1).loss, problem.hidden)
    assert whole[:2].abs().min() > 0
    assert not whole[2:].any()


def test_half_precision_rows_meet_single_precision_weights() -> None:
    """As in mixed-precision training: activations in bfloat16, parameters and their gradients in float32."""
    problem = Problem(50, 7, bias=True, dtype=torch.float32)
    half = problem.hidden.detach().bfloat16().requires_grad_()
    sums = cross_entropy(half, problem.weight, problem.bias, problem.tokens, problem.weights)
    values = log_probs(half, problem.weight, problem.bias, problem.tokens)
    assert sums.loss.dtype == values.dtype == torch.float32
    gradients = torch.autograd.grad(sums.loss, (half, problem.weight, problem.bias))
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float32, torch.float32]
    expected = problem.expected(0, 0)
    torch.testing.assert_close(sums.loss, expected.loss, rtol=2e-2, atol=0)
    for found, exact in zip(gradients, torch.autograd.grad(expected.loss, problem.inputs), strict=True):
        torch.testing.assert_close(found.float(), exact, rtol=0, atol=0.03 * float(exact.abs().max()))


def test_logits_of_any_size_overflow_nowhere() -> None:
    problem = Problem(5, 7, bias=False)
    problem.hidden.data *= 1e4
    found, expected = problem.found(0.1, 0), problem.expected(0.1, 0)
    same([found.loss.detach()], [expected.loss.detach()])
    same(torch.autograd.grad(found.loss, problem.inputs), torch.autograd.grad(expected.loss, problem.inputs))


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return out


def test_the_logits_of_all_rows_never_exist_at_once() -> None:
    num, vocabulary, rows = 1000, 500, 20
    problem = Problem(num, vocabulary, bias=True, dtype=torch.float32)
    with patch.object(module, "chunk_rows", lambda *_: rows), Largest() as largest:
        problem.found(0.1, 0.1).loss.backward()
        log_probs(problem.hidden, problem.weight, problem.bias, problem.tokens).sum().backward()
    assert largest.elements == rows * vocabulary
    with Largest() as largest:
        problem.expected(0.1, 0.1).loss.backward()
    assert largest.elements == num * vocabulary


def test_chunks_are_of_the_size_that_is_asked_for() -> None:
    assert chunk_rows(50257, torch.bfloat16) == module.CHUNK_BYTES // (2 * 50257) > 128
    assert chunk_rows(10**9, torch.float32) == 128


def test_compiled_sums_agree() -> None:
    problem = Problem(40, 9, bias=True)
    with compilation(True), patch.object(module, "chunk_rows", lambda *_: 16):
        found = problem.found(0.1, 0.1)
    expected = problem.expected(0.1, 0.1)
    same([x.detach() for x in found], [x.detach() for x in expected])
    same(torch.autograd.grad(found.loss, problem.inputs), torch.autograd.grad(expected.loss, problem.inputs))
