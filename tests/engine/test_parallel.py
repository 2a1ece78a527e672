"""Several ranks are one: the same weights, in every mode, however unequal what each of them has to do."""

from __future__ import annotations

import itertools
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from danlu.build import assemble
from danlu.data import deal
from danlu.engine.held import held
from danlu.engine.launch import launched
from danlu.engine.parallel import Mode, Replicated, choose
from danlu.engine.ranks import ALONE, Ranks
from danlu.errors import RecipeError, RunError
from danlu.experiment import Experiment
from danlu.reading import load_recipe
from ranks import run_ranks

from .runs import GPT2, QWEN3, experiment, groups, largest_difference, recipe, source

MODES: tuple[Mode, ...] = ("ddp", "zero1", "zero2", "zero3")
TOLERANCE = 1e-6
FLOOR = "optimizer.eps=1e-7"
STEPS = 20
UNTIED = {**QWEN3, "tie_word_embeddings": False, "hidden_dropout": 0.1}
LOADS = {
    "packs of one or two samples": ("run.pack_tokens=33", "data.step_samples=5"),
    "fewer samples than ranks": ("data.step_samples=1",),
    "everything at once, made again": ("data.step_samples=8", "run.pack_tokens=1000", "run.recompute=full"),
}


def train(parts: Experiment, steps: int = STEPS) -> list[dict[str, Any]]:
    """So many updates; what each was measured to be."""
    one, drawn, rows = parts.updater(), source(parts), []
    for step in range(steps):
        measured = one.gradient(one.groups(drawn.draw()), step)
        rows.append({**measured.metrics, "norm": one.clip(), "samples": measured.samples, "tokens": measured.tokens})
        one.move(1e-3)
    return rows


def weights(parts: Experiment) -> dict[str, Tensor]:
    held = parts.parallel.gathered(parts.policy)
    return held if held is not None else {n: p.detach().clone() for n, p in parts.policy.named_parameters()}


def runs_on_ranks(made: dict[str, Any], every: list[tuple[str, ...]]) -> list[tuple[str, list[Any], Any, Any]]:
    """On each rank: one run after another; the mode, what was measured, the held-out metrics and the weights."""
    found = []
    for overrides in every:
        parts = assemble(load_recipe(made, overrides), launched())
        before = parts.updater().measure(parts.held_out())
        rows = train(parts)
        after = parts.updater().measure(parts.held_out())
        texts = list(parts.continuations())
        found.append((parts.parallel.mode, rows, (before, after, texts), weights(parts)))
        parts.close()
    return found


RINGS = {
    "a ring of all ranks": (2, ("run.context_parallel=2", "run.pack_tokens=33")),
    "two rings, packs of one or two samples": (
        4,
        ("run.context_parallel=2", "run.pack_tokens=17", "run.recompute=full"),
    ),
}


@pytest.mark.parametrize("case", RINGS)
def test_ranks_that_share_rows_are_one_process(tmp_path: Path, case: str) -> None:
    size, overrides = RINGS[case]
    made = recipe(tmp_path, UNTIED)
    found = run_ranks(runs_on_ranks, size, made, [(FLOOR, f"run.parallel={m}", *overrides) for m in ("ddp", "zero3")])
    parts = experiment(made, FLOOR, "run.pack_tokens=33")
    before, rows, after = (
        parts.updater().measure(parts.held_out()),
        train(parts),
        parts.updater().measure(parts.held_out()),
    )
    for mode, rows_there, held_out, ended in found[0]:
        assert held_out[0] == pytest.approx(before, rel=1e-6), mode
        for row, one in zip(rows_there, rows, strict=True):
            assert row == pytest.approx(one, rel=1e-5), mode
        assert held_out[1] == pytest.approx(after, rel=1e-5), mode
        assert largest_difference(list(ended.values()), list(weights(parts).values())) < TOLERANCE, mode


@pytest.mark.parametrize(("size", "model"), [(2, GPT2), (3, UNTIED)], ids=["two", "three"])
def test_the_weights_after_some_updates_are_those_of_one_process(
    tmp_path: Path, size: int, model: dict[str, Any]
) -> None:
    made = recipe(tmp_path, model, prompts=["the furnace"], prompt_tokens=5)
    cases = [(mode, load) for mode in MODES for load in LOADS]
    found = run_ranks(runs_on_ranks, size, made, [(FLOOR, f"run.parallel={m}", *LOADS[load]) for m, load in cases])
    expected = {}
    for load, overrides in LOADS.items():
        parts = experiment(made, FLOOR, *overrides)
        before = parts.updater().measure(parts.held_out())
        rows = train(parts)
        after = parts.updater().measure(parts.held_out())
        expected[load] = (rows, (before, after, list(parts.continuations())), weights(parts))
    for rank in range(size):
        for (mode, load), (ran, rows, held_out, ended) in zip(cases, found[rank], strict=True):
            where = f"rank {rank}, {mode}, {load}"
            assert ran == mode, where
            rows_of_one, held_out_of_one, weights_of_one = expected[load]
            for row, one in zip(rows, rows_of_one, strict=True):
                assert row == pytest.approx(one, rel=1e-5), where
            assert held_out[0] == pytest.approx(held_out_of_one[0], rel=1e-6), where
            assert held_out[1] == pytest.approx(held_out_of_one[1], rel=1e-5), where
            assert held_out[2] == held_out_of_one[2], where
            if ended or mode == "ddp":  # shards are put together on the first rank only
                assert ended.keys() == weights_of_one.keys()
                difference = largest_difference(list(ended.values()), list(weights_of_one.values()))
                assert difference < TOLERANCE, f"{where}: {difference}"


def bytes_held(made: dict[str, Any]) -> dict[str, tuple[float, ...]]:
    """In each mode, what a rank holds as a share of all parameters' bytes.

    Weights within an update, between packs; gradients there; weights between updates; the optimiser's averages.
    """
    return {mode: _bytes_in(made, mode) for mode in MODES}


def _bytes_in(made: dict[str, Any], mode: Mode) -> tuple[float, ...]:
    parts = assemble(load_recipe(made, [f"run.parallel={mode}"]), launched())
    one, policy, begin = parts.updater(), parts.policy, parts.parallel.begin_pack
    total = sum(p.numel() * p.element_size() for p in policy.parameters())
    seen = []

    def look() -> None:
        seen.append((_size(_weights(policy)) / total, _size(_gradients(policy)) / total))

    def begin_pack(model: Any, *, last: bool) -> None:
        look()
        begin(model, last=last)

    parts.parallel.begin_pack = begin_pack  # type: ignore[method-assign]
    drawn = one.groups(source(parts).draw())
    assert one.gradient(drawn, 0).packs >= 2 * dist.get_world_size()
    one.move(1e-3)
    look()
    averages = [v for state in one.optimizer.state.values() for k, v in state.items() if k != "step"]
    kept = _size([held(v) for v in averages]) / total
    parts.close()
    return seen[1][0], seen[1][1], seen[-1][0], kept


def _size(tensors: list[Tensor]) -> int:
    """The bytes behind some tensors, those behind several of them once."""
    return sum({(s := t.untyped_storage()).data_ptr(): s.nbytes() for t in tensors}.values())


def _weights(model: torch.nn.Module) -> list[Tensor]:
    """Shards, and what is gathered beside them."""
    from torch.distributed.fsdp import FSDPModule

    if not isinstance(model, FSDPModule):
        return [p.detach() for p in model.parameters()]
    held: list[Tensor] = []
    for parameter in _sharded(model):
        held.append(parameter._sharded_param_data)
        held += [gathered for gathered in parameter.all_gather_outputs if gathered.untyped_storage().nbytes()]
    return held


def _gradients(model: torch.nn.Module) -> list[Tensor]:
    from torch.distributed.fsdp import FSDPModule

    if not isinstance(model, FSDPModule):
        return [p.grad for p in model.parameters() if p.grad is not None]
    held: list[Tensor] = []
    for parameter in _sharded(model):
        if parameter.sharded_param.grad is not None:
            held.append(parameter.sharded_param.grad.to_local())
        whole = parameter.unsharded_accumulated_grad
        gathered = getattr(parameter, "_unsharded_param", None)  # there once it was gathered
        whole = gathered.grad if whole is None and gathered is not None else whole
        held += [] if whole is None else [whole]
    return held


def _sharded(model: torch.nn.Module) -> list[Any]:
    from torch.distributed.fsdp import FSDPModule

    parts = [m for m in model.modules() if isinstance(m, FSDPModule)]
    return [
        p for part in parts for group in [part._get_fsdp_state()._fsdp_param_group] if group for p in group.fsdp_params
    ]


def test_each_stage_holds_the_bytes_it_claims(tmp_path: Path) -> None:
    made = recipe(tmp_path, QWEN3)
    made["data"]["step_samples"] = 12
    one, other = run_ranks(bytes_held, 2, made)
    assert one == other
    half, whole = pytest.approx(0.5, abs=0.02), pytest.approx(1.0, abs=0.02)
    both = pytest.approx(1.5, abs=0.03)  # a shard, and all of it gathered
    assert one["ddp"] == (whole, whole, whole, pytest.approx(2.0, abs=0.04))
    assert one["zero1"] == (both, whole, half, whole)
    assert one["zero2"] == (both, half, half, whole)
    assert one["zero3"] == (half, half, half, whole)


def test_what_a_rank_says_reaches_all_whatever_its_length() -> None:
    for told in run_ranks(gathered, 3):
        assert told == [[0, "", 0.1], [1, "x" * 5000, 0.2], [2, "x" * 10000, 0.1 + 0.2]]


def gathered() -> list[Any]:
    ranks = launched()
    return ranks.gather([ranks.rank, "x" * 5000 * ranks.rank, [0.1, 0.2, 0.1 + 0.2][ranks.rank]])


def test_a_fault_of_the_first_rank_is_every_ranks() -> None:
    assert run_ranks(led, 2) == ["here: it is full. Make room."] * 2


def led() -> str:
    def fail() -> None:
        raise RunError("it is full", where="here", do="Make room.")

    with pytest.raises(RunError) as caught:
        launched().lead(fail)
    return str(caught.value)


def test_several_processes_for_a_run_of_one_are_refused(tmp_path: Path) -> None:
    parts = experiment(recipe(tmp_path))
    with pytest.raises(RecipeError, match="run.parallel is none, and 2 processes were started"):
        choose("none", Ranks(0, 2), parts.policy, 1 << 30)


def test_ranks_that_do_not_divide_into_rings_are_refused(tmp_path: Path) -> None:
    parts = experiment(recipe(tmp_path))
    for ranks in (Ranks(0, 3), ALONE):
        with pytest.raises(RecipeError, match=rf"run.context_parallel is 2, and {ranks.size} processes"):
            choose("auto", ranks, parts.policy, 1 << 30, ring=2)


@pytest.mark.parametrize(("memory", "mode"), [(1 << 40, "ddp"), (1 << 10, "zero3")])
def test_auto_keeps_the_model_whole_where_it_has_room(tmp_path: Path, memory: int, mode: Mode) -> None:
    parts = experiment(recipe(tmp_path))
    assert choose("auto", Ranks(0, 2), parts.policy, memory).mode == mode
    assert choose("auto", ALONE, parts.policy, memory).mode == "none"


def test_shares_are_whole_disjoint_and_about_as_dear(tmp_path: Path) -> None:
    parts = experiment(recipe(tmp_path), "data.step_samples=30")
    (step,) = groups(parts)
    lengths = [len(group) for group in step]
    shares = deal(lengths, 4)
    assert sorted(i for share in shares for i in share) == list(range(30))
    loads = [sum(lengths[i] for i in share) for share in shares]
    assert max(loads) - min(loads) <= max(lengths)
    assert deal([5], 3) == [[0], [], []]


def test_buckets_hold_each_parameter_once_and_fill_from_the_end(tmp_path: Path) -> None:
    parts = experiment(recipe(tmp_path))
    replicated = Replicated(Ranks(0, 2))
    replicated.lay_out(parts.policy, torch.device("cpu"))
    held = [p for bucket in replicated._buckets for p in bucket]
    assert [id(p) for p in held] == [id(p) for p in parts.policy.parameters()][::-1]


def test_ranks_of_a_machine_come_in_turn() -> None:
    for spans in zip(*run_ranks(in_turn, 3), strict=True):
        for (_, end), (begin, _) in itertools.pairwise(spans):
            assert end <= begin


def in_turn() -> list[tuple[float, float]]:
    spans = []
    for _ in range(2):
        with launched().in_turn():
            begin = time.monotonic()
            time.sleep(0.05)
            spans.append((begin, time.monotonic()))
    return spans


def test_models_too_large_to_be_there_twice_are_made_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(tmp_path, QWEN3)
    assert set(run_ranks(made_with_little_room, 2, made)) == {"in turn"}


def made_with_little_room(made: dict[str, Any]) -> str:
    ranks = launched()
    room = SimpleNamespace(available=1000, total=1 << 40)
    with mock.patch("psutil.virtual_memory", return_value=room), mock.patch.object(Ranks, "in_turn") as turn:
        turn.return_value = nullcontext()
        assemble(load_recipe(made, ["run.parallel=zero3"]), ranks).close()
        return "in turn" if turn.called else "at once"


def test_gradients_travel_as_often_as_each_stage_needs(tmp_path: Path) -> None:
    """Bytes a rank gives to be reduced in one update, as shares of the model's, by its number of packs."""
    made = recipe(tmp_path, UNTIED)
    made["data"]["step_samples"] = 12
    (packs, sent), _ = run_ranks(bytes_sent, 2, made)
    assert packs >= 3
    once = pytest.approx(1.0, abs=0.05)
    assert sent["ddp"] == once
    assert sent["zero1"] == once
    assert sent["zero2"] == sent["zero3"] == pytest.approx(packs, rel=0.05)


def bytes_sent(made: dict[str, Any]) -> tuple[int, dict[str, float]]:
    sent, packs = {}, 0
    for mode in MODES:
        parts = assemble(load_recipe(made, [f"run.parallel={mode}"]), launched())
        total = sum(p.numel() * p.element_size() for p in parts.policy.parameters())
        one, given = parts.updater(), [0]

        def counted(reduce: Any, which: int, given: list[int] = given) -> Any:
            def call(*args: Any, **named: Any) -> Any:
                tensor = named.get("input", args[which] if len(args) > which else None)
                given[0] += tensor.numel() * tensor.element_size()
                return reduce(*args, **named)

            return call

        packs = one.gradient(one.groups(source(parts).draw()), 0).packs // 2
        with (
            mock.patch.object(dist, "all_reduce", counted(dist.all_reduce, 0)),
            mock.patch.object(dist, "reduce_scatter_single", counted(dist.reduce_scatter_single, 1)),
        ):
            one.gradient(one.groups(source(parts).draw()), 0)
        sent[mode] = given[0] / total
        parts.close()
    return packs, sent
