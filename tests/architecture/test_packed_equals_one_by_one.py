"""The one property that all of it rests on: *packed equals one by one, in loss and in gradient*, for any forest.

The oracle is `Packed.unroll`: every path from a root to a leaf as a sequence of its own, passed alone through the
reference attention; a target belongs to the first path that holds its row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tiny
from danlu.contracts import SequenceModel
from danlu.packed import ROOT, Packed, Targets
from danlu.parts import attention as attention_module
from danlu.parts.attention import Backend, attend_reference
from danlu.parts.attention_calls import tiles
from danlu.parts.attention_fused import attend_fused
from danlu.parts.attention_tiled import attend_tiled
from danlu.parts.readout import Likelihood, LogProbs
from danlu.random import fold, token_keys
from danlu.sight import Sight
from strategies import VOCABULARY, forests, keyed, targets

BACKENDS: dict[str, Backend] = {"reference": attend_reference, "fused": attend_fused, "tiled": attend_tiled}
TOLERANCE = 1e-10
MODELS = {name: tiny.model(name) for name in tiny.ARCHITECTURES if name in tiny.FIELDS}


class Result:
    """A loss, each target's log-probability, and the gradients of every parameter."""

    def __init__(self, model: SequenceModel) -> None:
        self.loss = torch.zeros((), dtype=torch.float64)
        self.log_probs: list[Tensor] = []
        self.gradients = {name: torch.zeros_like(p) for name, p in model.named_parameters()}

    def add(self, model: SequenceModel, packed: Packed, wanted: Targets, backend: Backend) -> Tensor:
        """Pass a pack through the model; give its targets' log-probabilities."""
        with patch.object(attention_module, "backend_for", lambda _: backend):
            likelihood = Likelihood(wanted, label_smoothing=0.1, z_loss=0.01)
            sums, log_probs = model(packed, [likelihood, LogProbs(wanted)])
            names, parameters = zip(*model.named_parameters(), strict=True)
            gradients = torch.autograd.grad(sums.loss, parameters, allow_unused=True)
        self.loss += sums.loss.detach()
        for name, gradient in zip(names, gradients, strict=True):
            if gradient is not None:
                self.gradients[name] += gradient
        return log_probs.detach()


def together(model: SequenceModel, packed: Packed, wanted: Targets, backend: Backend) -> Result:
    result = Result(model)
    result.log_probs = [result.add(model, packed, wanted, backend)]
    return result


def one_by_one(model: SequenceModel, packed: Packed, wanted: Targets) -> Result:
    """Every path alone; its random keys drawn anew from its own samples and offsets."""
    result, values = Result(model), torch.zeros(len(wanted), dtype=torch.float64)
    taken = torch.zeros(len(packed), dtype=torch.bool)
    for path, rows in packed.unroll():
        index = torch.full((len(packed),), -1)
        index[rows] = torch.where(taken[rows], -1, torch.arange(len(rows)))
        taken[rows] = True
        mine = index[wanted.rows] >= 0
        part = Targets(index[wanted.rows][mine], wanted.tokens[mine], wanted.weights[mine])
        alone = path if packed.keys is None else keyed(replace(path, keys=None))
        values[mine] = result.add(model, alone, part, attend_reference)
    result.log_probs = [values]
    return result


def compare(found: Result, expected: Result, tolerance: float = TOLERANCE) -> None:
    same = torch.testing.assert_close
    same(found.loss, expected.loss, rtol=tolerance, atol=tolerance, msg=lambda m: f"loss: {m}")
    same(torch.cat(found.log_probs), torch.cat(expected.log_probs), rtol=tolerance, atol=tolerance)
    for name, gradient in expected.gradients.items():
        atol = tolerance * max(1.0, float(gradient.abs().max()))
        same(found.gradients[name], gradient, rtol=0, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_packed_equals_one_by_one(name: str, backend: str) -> None:
    model = MODELS[name]

    @settings(max_examples=20)
    @given(st.data(), forests(max_segments=6), st.booleans(), st.sampled_from([1, 3, 256]))
    def check(data: st.DataObject, packed: Packed, random: bool, size: int) -> None:
        wanted = data.draw(targets(packed))
        packed = keyed(packed) if random else packed
        with patch.object(tiles, "__defaults__", (size,)):
            found = together(model, packed, wanted, BACKENDS[backend])
        compare(found, one_by_one(model, packed, wanted))

    check()


def example() -> tuple[Packed, Targets]:
    """A prompt with two answers, one continued; beside it a document of one token, a chain and a plain document."""
    trees = [
        Packed.tree([[1, 2, 3, 4], [5, 6], [7], [8, 9, 10]], parents=[ROOT, 0, 1, 0], samples=[1, 2, 2, 3]),
        Packed.tree([[11]], samples=4),
        Packed.tree([[0, 1], [12, 3, 4]], parents=[ROOT, 0], causal=[False, True], samples=5),
        Packed.tree([[5, 5, 6, 7, 1, 2]], samples=6),
    ]
    packed = Packed.join(trees)
    rows = torch.cat([torch.arange(len(packed)), torch.tensor([3, 3, 3])])
    return packed, Targets(rows, (rows * 5 + 1) % VOCABULARY, torch.linspace(0.5, 2, len(rows)))


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_the_order_of_trees_and_empty_packs_change_nothing(name: str) -> None:
    packed, _ = example()
    trees = keyed(packed).split()
    results = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        joined = Packed.join([Packed.empty(), *(trees[i] for i in order)])
        rows = torch.arange(len(joined))
        wanted = Targets(rows, (joined.tokens + 1) % VOCABULARY, torch.ones(len(rows)))
        results.append(together(MODELS[name], joined, wanted, attend_fused))
    results[1].log_probs = results[0].log_probs  # these are in another order
    compare(results[1], results[0])


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_pack_gives_zero_loss_and_zero_gradients(name: str, backend: str) -> None:
    result = together(MODELS[name], Packed.empty(), Targets.none(), BACKENDS[backend])
    assert float(result.loss) == 0
    assert not any(gradient.any() for gradient in result.gradients.values())


def felt(model: SequenceModel, packed: Packed, tree: int, backend: Backend) -> Tensor:
    """How much the loss of one tree's targets feels each row's token embedding."""
    start, stop = packed.trees[tree]
    rows = torch.arange(start, stop)
    wanted = Targets(rows, packed.tokens[rows], torch.ones(len(rows)))
    kept: list[Tensor] = []
    hook = tiny.embedding(model).register_forward_hook(lambda _, __, out: kept.append(out))
    try:
        with patch.object(attention_module, "backend_for", lambda _: backend):
            (sums,) = model(packed, [Likelihood(wanted)])
        (gradient,) = torch.autograd.grad(sums.loss, kept)
    finally:
        hook.remove()
    return gradient


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_no_tree_feels_another(name: str, backend: str) -> None:
    @settings(max_examples=10)
    @given(forests(min_segments=2), st.booleans())
    def check(packed: Packed, random: bool) -> None:
        packed = keyed(packed) if random else packed
        for tree, (start, stop) in enumerate(packed.trees):
            gradient = felt(MODELS[name], packed, tree, BACKENDS[backend])
            assert gradient[start:stop].abs().sum(1).min() > 0
            assert not gradient[:start].any()
            assert not gradient[stop:].any()

    check()


def end_leaks(packed: Packed) -> Packed:
    """The first tree's keys are seen by the next tree's first row."""
    sight, (start, stop) = packed.sight, packed.trees[0]
    end = torch.where(sight.end == stop, stop + 1, sight.end)
    calls = torch.cat([sight.calls, torch.tensor([[stop, stop + 1, start, stop, 0]])])
    return with_sight(packed, replace(sight, end=end, calls=calls))


def calls_merged(packed: Packed) -> Packed:
    """The last two trees are attended to as if they were one document, as a pack without boundaries is."""
    sight, start, stop = packed.sight, packed.trees[-2][0], packed.trees[-1][1]
    calls = [call for call in sight.calls.tolist() if call[0] < start]
    rows = torch.arange(len(packed))
    first, end = (
        torch.where(rows < start, old, new) for old, new in ((sight.first, rows), (sight.end, torch.tensor(stop)))
    )
    table = torch.tensor([*calls, [start, stop, start, stop, 1]])
    return with_sight(packed, replace(sight, first=first, end=end, calls=table))


def brother_seen(packed: Packed) -> Packed:
    """The second answer sees the first."""
    sight, bounds = packed.sight, packed.bounds
    calls = torch.cat([sight.calls, torch.tensor([[bounds[3], bounds[4], bounds[1], bounds[2], 0]])])
    end = sight.end.clone()
    end[bounds[1] : bounds[2]] = bounds[4]
    return with_sight(packed, replace(sight, end=end, calls=calls))


def positions_go_on(packed: Packed) -> Packed:
    """The second answer's positions count on from the first's. (Of a whole tree's, rotary scores know no beginning.)"""
    return replace(packed, positions=packed.positions + 2 * (packed.segment_of_row == 3))


def keys_of_the_pack(packed: Packed) -> Packed:
    """Randomness is drawn by the row in the pack."""
    row = torch.arange(len(packed))
    return replace(packed, keys=token_keys(fold(0, 1), torch.zeros_like(row), row))


def with_sight(packed: Packed, sight: Sight) -> Packed:
    changed = replace(packed)
    changed.__dict__["sight"] = sight
    return changed


LEAKS = [end_leaks, calls_merged, brother_seen, positions_go_on, keys_of_the_pack]


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_the_comparison_sees_isolation_broken_on_purpose(
    name: str, backend: str, leak: Callable[[Packed], Packed]
) -> None:
    model, (packed, wanted) = MODELS[name], example()
    packed = keyed(packed)
    expected = one_by_one(model, packed, wanted)
    compare(together(model, packed, wanted, BACKENDS[backend]), expected)
    with pytest.raises(AssertionError):
        compare(together(model, leak(packed), wanted, BACKENDS[backend]), expected, tolerance=1e-6)


@pytest.mark.parametrize("leak", [end_leaks, calls_merged])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_leak_between_trees_is_felt(backend: str, leak: Callable[[Packed], Packed]) -> None:
    model, (packed, _) = MODELS["llama"], example()
    tree = 1 if leak is end_leaks else len(packed.trees) - 1
    start = packed.trees[tree][0]
    assert not felt(model, packed, tree, BACKENDS[backend])[:start].any()
    assert felt(model, leak(packed), tree, BACKENDS[backend])[:start].any()


def test_a_window_shorter_than_the_path_and_one_that_is_not_are_told_apart() -> None:
    """So that the sliding layers above are known to slide."""
    packed, wanted = example()
    wide = tiny.model("llama", sliding_window=40)
    narrow, same_weights = MODELS["llama"], dict(MODELS["llama"].named_parameters())
    for name, parameter in wide.named_parameters():
        assert torch.equal(parameter, same_weights[name])
    with pytest.raises(AssertionError):
        compare(together(narrow, packed, wanted, attend_fused), one_by_one(wide, packed, wanted), tolerance=1e-6)
