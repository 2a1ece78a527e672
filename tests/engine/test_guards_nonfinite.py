from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from danlu.batch import Batch
from danlu.contracts import Outcome
from danlu.engine.guards.nonfinite import Trace, trace_nonfinite
from danlu.engine.guards.watch import watching
from danlu.engine.parallel import Parallel
from danlu.engine.ranks import Ranks
from danlu.engine.update import Updater
from danlu.experiment import Experiment
from danlu.method.next_token import NextToken

from .runs import QWEN3, assert_same_tensors, experiment, groups, recipe
from .threads import Threads

STEP = 6


@pytest.fixture
def parts(tmp_path: Path) -> Experiment:
    return experiment(recipe(tmp_path, {**QWEN3, "hidden_dropout": 0.2}), "data.step_samples=8")


@dataclass
class Marked:
    """Which rows of what goes through are of some samples."""

    samples: list[int]
    rows: Tensor | None = None

    def look(self, _: nn.Module, args: Sequence[Any]) -> None:
        packed = args[0]
        self.rows = torch.isin(packed.sample[packed.segment_of_row], torch.tensor(self.samples))


class Burst(torch.autograd.Function):
    """The identity, whose gradient is not finite in some rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        return torch.where(rows[:, None], torch.inf, gradient), None


class Fragile(nn.Module):
    """A layer that fails for some rows, on the way there or on the way back."""

    def __init__(self, inner: nn.Module, marked: Marked, way: str) -> None:
        super().__init__()
        self.inner, self.marked, self.way = inner, marked, way

    def forward(self, x: Tensor) -> Tensor:
        assert self.marked.rows is not None
        if self.way == "backward":
            return self.inner(Burst.apply(x, self.marked.rows))
        return self.inner(x) + torch.where(self.marked.rows[:, None], torch.inf, 0.0)


def sabotaged(parts: Experiment, bad: Sequence[Batch], way: str) -> Updater:
    """Its second block's feed-forward fails of some groups."""
    marked = Marked([sample(group) for group in bad])
    policy: Any = parts.policy
    policy.register_forward_pre_hook(marked.look)
    policy.layers[1].mlp = Fragile(policy.layers[1].mlp, marked, way)
    return parts.updater()


def sample(group: Batch) -> int:
    return int(group.packed.sample[0])


@pytest.mark.parametrize("way", ["output", "backward"])
@pytest.mark.parametrize("pack_tokens", [32, 1000])
def test_one_bad_sample_of_many_is_found_and_the_layer_it_fails_in(
    parts: Experiment, way: str, pack_tokens: int
) -> None:
    (step,) = groups(parts)
    updater = replace(sabotaged(parts, [step[5]], way), pack_tokens=pack_tokens)
    before = {name: p.detach().clone() for name, p in parts.policy.named_parameters()}
    measured = updater.gradient(step, STEP)
    assert not torch.isfinite(torch.tensor([measured.metrics["loss"], updater.clip()])).all()
    found = trace_nonfinite(updater, step, STEP)
    assert (found.cause, found.way, found.layer) == ("samples", way, "layers.1.mlp")
    assert (found.samples, found.origins, found.among) == ((sample(step[5]),), step[5].origin, 8)
    saying = {
        "output": "the first output that is not finite is that of 'layers.1.mlp'",
        "backward": "the gradient stops being finite on its way back through 'layers.1.mlp'",
    }[way]
    assert found.sentence == (
        f"the loss or gradient of step {STEP + 1} is not finite because of {step[5].origin[0]}; {saying}"
    )
    assert all(parameter.grad is None for parameter in parts.policy.parameters())
    assert_same_tensors(dict(parts.policy.named_parameters()), before)


def test_several_bad_samples_are_all_named(parts: Experiment) -> None:
    (step,) = groups(parts)
    bad = [step[i] for i in (1, 4, 6)]
    updater = replace(sabotaged(parts, bad, "output"), pack_tokens=100)
    found = trace_nonfinite(updater, step, STEP)
    assert sorted(found.samples) == sorted(map(sample, bad))
    assert sorted(found.origins) == sorted(group.origin[0] for group in bad)
    assert f"because of {len(bad)} of its 8 samples: " in found.sentence


def test_a_target_whose_weight_is_none_is_named(parts: Experiment) -> None:
    (step,) = groups(parts)
    weights = step[2].targets.weights.clone()
    weights[-1] = torch.nan
    step[2] = replace(step[2], targets=replace(step[2].targets, weights=weights))
    found = trace_nonfinite(parts.updater(), step, STEP)
    assert (found.cause, found.way, found.layer) == ("samples", "targets", None)
    assert found.origins == step[2].origin


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_parameter_that_was_not_finite_before_is_named(parts: Experiment, value: float) -> None:
    (step,) = groups(parts)
    dict(parts.policy.named_parameters())["layers.1.mlp.down_proj.weight"].data[3, 4] = value
    found = trace_nonfinite(parts.updater(), step, STEP)
    assert found == Trace(STEP + 1, "parameter", way="parameter", layer="layers.1.mlp.down_proj.weight")
    assert found.sentence.endswith("because parameter 'layers.1.mlp.down_proj.weight' was not before it")


def test_a_layer_whose_product_overflows_is_named_though_its_weights_are_finite(parts: Experiment) -> None:
    (step,) = groups(parts)
    named = dict(parts.policy.named_parameters())
    named["layers.0.mlp.down_proj.weight"].data.mul_(1e38)
    named["layers.0.mlp.up_proj.weight"].data.mul_(1e10)
    found = trace_nonfinite(parts.updater(), step, STEP)
    assert (found.cause, found.way, found.layer) == ("samples", "output", "layers.0.mlp.down_proj")
    assert set(found.samples) == set(map(sample, step))


class Loud(NextToken):
    """Next-token prediction, its loss times a factor."""

    factor: float = 1.0
    """The factor."""

    def loss(self, models: Any, batch: Batch) -> Outcome:
        """See `Method`."""
        outcome = super().loss(models, batch)
        return Outcome({name: self.factor * value for name, value in outcome.losses.items()}, {})


@pytest.mark.parametrize("pack_tokens", [32, 1000])
def test_samples_that_are_bad_only_together_are_told_so(parts: Experiment, pack_tokens: int) -> None:
    """Gradients whose norms are each just below what float32 can square and sum, and whose sum's is not."""
    (step,) = groups(parts)
    updater = replace(parts.updater(), pack_tokens=pack_tokens)

    def norm(some: Sequence[Batch]) -> float:
        updater.gradient(some, STEP)
        return updater.clip() * float(sum(len(group.targets) for group in some))

    updater = replace(updater, clip_norm=None)
    targets, alone = sum(len(group.targets) for group in step), max(norm([group]) for group in step)
    together = norm(step)
    assert together > 1.2 * alone
    factor = 1.8e19 * targets / (alone * together) ** 0.5
    updater = replace(updater, method=Loud(factor=factor))
    updater.gradient(step, STEP)
    assert updater.clip() == torch.inf
    found = trace_nonfinite(updater, step, STEP)
    assert found.cause == "together"
    assert set(found.samples) == set(map(sample, step))
    assert found.way == "parameter"
    assert found.layer in dict(parts.policy.named_parameters())
    assert "is not finite, of no sample alone but of " in found.sentence
    assert "or too long for its norm to be" in found.sentence


def test_what_does_not_happen_again_is_told_so(parts: Experiment) -> None:
    (step,) = groups(parts)
    found = trace_nonfinite(parts.updater(), step, STEP)
    assert found == Trace(STEP + 1, "unknown")
    assert "computed again it is: look at the machine" in found.sentence


def test_what_was_random_is_the_same_again(parts: Experiment) -> None:
    """A layer that fails at one value, which dropout gives at one step only."""
    (step,) = groups(parts)
    updater, policy = parts.updater(), parts.policy
    seen: list[Tensor] = []
    block: Any = policy
    hook = block.layers[1].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    updater.gradient(step, STEP)
    hook.remove()
    value = seen[0][3, 7]
    bad = [step[i] for i in range(len(step))]

    class Picky(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor, *rest: Any) -> Tensor:
            out = self.inner(x, *rest)
            return out * torch.nan if bool((x == value).any()) else out

    block.layers[1] = Picky(block.layers[1])
    block.layers[1].to(value.dtype)
    found = trace_nonfinite(updater, bad, STEP)
    assert (found.cause, found.layer, len(found.samples)) == ("samples", "layers.1", 1)
    assert trace_nonfinite(updater, bad, STEP + 1).cause == "unknown"


def test_ranks_find_the_same_culprit_whoever_has_it(parts: Experiment) -> None:
    """Three ranks, the last of which has no samples, and whose passes are as many as the others'."""
    (step,) = groups(parts)
    shares = [step[:3], step[3:], []]
    alone = trace_nonfinite(sabotaged(parts, [step[5]], "output"), step, STEP)
    passes: list[list[int]] = [[], [], []]

    def work(ranks: Ranks) -> Trace:
        mine = deepcopy(parts.policy)
        mine.register_forward_pre_hook(lambda _, args: passes[ranks.rank].append(len(args[0])))
        one = replace(parts.updater(), models={"policy": mine}, pack_tokens=64, parallel=Parallel(ranks))
        return trace_nonfinite(one, shares[ranks.rank], STEP)

    found = Threads.run(3, work)
    assert found == [alone] * 3
    assert len({len(each) for each in passes}) == 1
    assert not any(passes[2])
    assert all(sum(map(bool, at)) <= 1 for at in zip(*passes, strict=True))


class Twice(nn.Module):
    """Layers that give what they were given, take what is not a tensor, and are computed again for their gradient."""

    def __init__(self, recompute: bool) -> None:
        super().__init__()
        self.first, self.same, self.square = nn.Linear(2, 2), nn.Identity(), Square()
        self.last = nn.Linear(2, 1)
        self.recompute = recompute

    def forward(self, x: Tensor) -> dict[str, tuple[Tensor, str]]:
        h = self.same(self.first(x))
        h = checkpoint(self.square, h, scale=3.0, use_reentrant=False) if self.recompute else self.square(h, scale=3.0)
        return {"loss": (self.last(h).sum(), "a sum")}


class Square(nn.Module):
    """x to the half, whose gradient at 0 is not finite."""

    def forward(self, x: Tensor, *, scale: float) -> Tensor:
        return scale * x.sqrt()


@pytest.mark.parametrize("recompute", [False, True])
def test_the_way_back_is_watched_through_what_is_computed_again(recompute: bool) -> None:
    net = Twice(recompute)
    for parameter in net.first.parameters():
        nn.init.zeros_(parameter)
    with watching({"policy": net, "reference": nn.Linear(1, 1)}) as watch:
        net(torch.ones(3, 2))["loss"][0].backward()
    assert watch.output is None
    assert (watch.backward or [None])[0] == "policy.square"
    assert (watch.gradient or [None])[0] == "policy.first"
    with torch.no_grad():
        net.first.bias.fill_(-1)
    with watching({"policy": net}) as watch:
        net(torch.ones(3, 2))["loss"][0].backward()
    assert (watch.output or [None])[0] == "square"
    assert not any(module._forward_hooks for module in net.modules())
