"""Faults of one of several ranks: all of them end alike, in one sentence, and the run goes on to the bit."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import pytest
import torch

import danlu
from danlu.build import assemble
from danlu.contracts import Batch
from danlu.data import DataSource, cache
from danlu.data.collection import Collection
from danlu.engine.checkpoint import Checkpoints
from danlu.engine.guards.clock import Clock
from danlu.engine.guards.nonfinite import trace_nonfinite
from danlu.engine.ranks import launched
from danlu.engine.update import Updater
from danlu.errors import DanluError, DataError
from danlu.method.next_token import NextToken
from danlu.recipe import load_recipe
from ranks import run_ranks

from .runs import (
    QWEN3,
    assert_same_run,
    assert_same_tensors,
    checkpoints,
    document,
    documents,
    flip,
    largest_difference,
    lines,
    recipe,
    step_folder,
    steps,
    weights,
)
from .test_checkpoint import no_file_larger_than
from .test_guards_nonfinite import Fragile, Marked

STEPS = 8
SAMPLES = 5
MODES = ("ddp", "zero3")
RING = ("run.context_parallel=2",)
EPS = "optimizer.eps=1e-6"
"""Else sums in another order may turn what is next to nothing around."""
Told = list[Any]
"""What became of a run on a rank: its reason, or its error's kind and words."""


def told(act: Callable[..., Any], *arguments: Any, **named: Any) -> Told:
    try:
        return [act(*arguments, **named).reason]
    except DanluError as error:
        return [type(error).__name__, str(error)]


def after(step: int, rank: int, act: Callable[[], Any]) -> Any:
    """On one rank something happens when an update is done."""
    move, done = Updater.move, iter(range(1, 1000))

    def moved(self: Updater, lr: float) -> None:
        move(self, lr)
        if next(done) == step and launched().rank == rank:
            act()

    return patch.object(Updater, "move", moved)


def masked(origins: Sequence[str], weight: float) -> Any:
    """Every target of some samples has another weight."""
    group = NextToken.group

    def weighed(self: NextToken, sample: Any) -> Batch:
        batch = group(self, sample)
        if sample.origin not in origins:
            return batch
        others = torch.full_like(batch.targets.weights, weight)
        return replace(batch, targets=replace(batch.targets, weights=others))

    return patch.object(NextToken, "group", weighed)


class Scenarios:
    """What two ranks go through; processes are slow to begin, so one pair does it all."""

    def __init__(self, made: dict[str, Any], folder: Path) -> None:
        self.made, self.folder, self.ranks = made, folder, launched()
        self.found: dict[str, list[Told]] = {}

    def train(self, out: str, *overrides: str) -> Told:
        return told(danlu.train, self.made, f"run.out={self.folder / out}", *overrides)

    def resume(self, out: str, *overrides: str, **named: Any) -> Told:
        return told(danlu.resume, self.folder / out, *overrides, **named)

    def note(self, name: str, *what: Any) -> None:
        self.found[name] = list(what)
        self.ranks.wait()

    def share(self, step: int, *overrides: str) -> list[list[str]]:
        """Where each rank's samples of a step come from."""
        parts = assemble(load_recipe(self.made, overrides), self.ranks)
        one, source = parts.updater(), parts.source
        for _ in range(step - 1):
            source.draw()
        shares = self.ranks.gather([group.origin[0] for group in one.groups(source.draw())])
        parts.close()
        return shares

    def signals(self) -> None:
        with after(4, 1, lambda: os.kill(os.getpid(), signal.SIGTERM)):
            ended = self.train("signal", "run.parallel=zero3")
        self.note("signal", ended, checkpoints(self.folder / "signal"), self.resume("signal"))

    def time(self) -> None:
        over = Clock.over
        with patch.object(Clock, "over", lambda clock: (self.ranks.rank == 1 and clock._step >= 2) or over(clock)):
            ended = self.train("time", "run.parallel=ddp", "run.max_time=1h")
        self.note("time", ended, checkpoints(self.folder / "time"), self.resume("time", "run.max_time=null"))

    def disk(self) -> None:
        for name, rank, size in (("checkpoint", 1, 9000), ("metrics", 0, 1500)):
            limit = no_file_larger_than(size)
            with after(6, rank, limit.__enter__):
                ended = self.train(name, "run.parallel=zero3")
            if self.ranks.rank == rank:
                limit.__exit__(None, None, None)
            there = checkpoints(self.folder / name)
            self.note(name, ended, there, self.resume(name))

    def flipped(self) -> None:
        if self.ranks.leads:
            flip(step_folder(self.folder / "zero3", STEPS) / "model-00002-of-00002.safetensors", 900)
        self.ranks.wait()
        self.note("flipped", self.resume("zero3"), checkpoints(self.folder / "zero3"), self.resume("zero3", step=4))

    def data(self) -> None:
        """A row that only one rank cannot read, and a process that stalls, which only one rank waits for."""
        draw, draws = DataSource.draw, iter(range(1000))

        def drawn(source: DataSource) -> Any:
            if next(draws) == 5 and self.ranks.rank == 1:
                raise DataError("the line is not JSON", where="some.jsonl:7")
            return draw(source)

        with patch.object(DataSource, "draw", drawn):
            ended = self.train("data", "run.parallel=zero3")
        self.note("data", ended, checkpoints(self.folder / "data"), self.resume("data"))

    def stalled(self) -> None:
        """The processes that encode hang; only the first rank waits for them."""
        multiprocessing.current_process().daemon = False  # which may have no processes of its own
        files = [str(part(self.folder, number)) for number in range(6)]
        data = (f"data.train={json.dumps(files)}", "data.held_out=null", "run.parallel=ddp", self.tokenizer)
        with processes_for_little(), after(2, 0, stop_encoders):
            ended = self.train("stalled", *data, "data.workers=2", f"data.cache={self.folder / 'other'}")
        there = checkpoints(self.folder / "stalled")
        with processes_for_little():
            self.note("stalled", ended, there, encoders(), self.resume("stalled", "data.workers=1"))
            self.train("not stalled", *data, "data.workers=1")

    def masks(self) -> None:
        """Nothing to learn for one rank; then for any."""
        shares = self.share(3)
        with masked(shares[1], 0.0):
            one = self.train("masked", "run.parallel=zero3", EPS)
        with masked([place for share in shares for place in share], 0.0):
            all_of_them = self.train("all masked", "run.parallel=zero3")
        self.note("masked", one, all_of_them, checkpoints(self.folder / "all masked"), shares)

    def not_finite(self) -> None:
        """One bad sample of the second rank's, at the sixth update; the last checkpoint is of the fourth."""
        layouts = {
            "ddp": ("run.parallel=ddp",),
            "zero3": ("run.parallel=zero3",),
            "ring": ("run.parallel=zero3", *RING),
        }
        for name, layout in layouts.items():
            common = (*layout, "data.shuffle=false", "data.held_out=null", self.tokenizer)
            bad = self.share(6, *common)[1][0]
            with masked([bad], torch.nan):
                stopped = self.train(f"{name} stop", *common)
                there = checkpoints(self.folder / f"{name} stop")
                self.train(f"{name} skip", *common, "run.guards.nonfinite=skip")
                self.train(f"{name} rollback", *common, "run.guards.nonfinite=rollback")
                self.note(f"{name} not finite", bad, stopped, there)
                self.resume(f"{name} stop", "run.guards.nonfinite=skip")
            for policy in ("skip", "rollback"):
                self.train(f"{name} {policy} oracle", *common, f"data.train={self.folder / f'{policy}.jsonl'}")

    def traced(self) -> None:
        """A layer that fails in some rows of one sample, which one rank of a ring has."""
        for mode, way in itertools.product(MODES, ("output", "backward")):
            parts = assemble(load_recipe(self.made, [f"run.parallel={mode}", *RING]), self.ranks)
            one = parts.updater()
            groups = one.groups(parts.source.draw())
            bad = max(groups, key=len)
            marked = Late([int(bad.packed.sample[0])])
            policy: Any = parts.policy
            policy.register_forward_pre_hook(marked.look)
            policy.layers[1].mlp = Fragile(policy.layers[1].mlp, marked, way)
            found = trace_nonfinite(one, groups, 0)
            parts.close()
            self.note(f"{mode} {way}", bad.origin[0], len(groups), found.way, found.layer, found.sentence)

    @property
    def tokenizer(self) -> str:
        """That of a run that is done, whatever the data are now."""
        return f"data.tokenizer={self.folder / 'ddp' / 'final'}"


def go_through(made: dict[str, Any], folder: Path) -> dict[str, Any]:
    every = Scenarios(made, folder)
    for mode in MODES:
        reason = every.train(mode, f"run.parallel={mode}")
        assert reason == ["done"], reason
    for act in (
        every.signals,
        every.time,
        every.disk,
        every.flipped,
        every.data,
        every.masks,
        every.not_finite,
        every.traced,
        every.stalled,
    ):
        act()
    return every.found


@contextmanager
def processes_for_little() -> Iterator[None]:
    """Each chunk is encoded by itself, and there are processes for it, for however few."""
    with (
        patch.dict(Collection.open.__func__.__kwdefaults__, worth_processes=1),  # type: ignore[attr-defined]
        patch.dict(Collection.stream.__kwdefaults__, pool_bytes=1),
        patch.object(cache, "PATIENCE", 100.0),
    ):
        yield


def encoders() -> list[int]:
    """The processes that encode for this one."""
    return [child.pid for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def stop_encoders() -> None:
    """For good; and wait for them only as long as a test may take."""
    cache.PATIENCE = 1.0
    found = encoders()
    assert found
    for pid in found:
        os.kill(pid, signal.SIGSTOP)


def part(folder: Path, number: int) -> Path:
    """A file of some texts."""
    file = folder / f"part{number}.jsonl"
    file.write_text("".join(json.dumps({"text": document(i)}) + "\n" for i in range(10 * number, 10 * number + 10)))
    return file


class Late(Marked):
    """The rows of some samples that lie behind the first few: of two ranks of a ring, one has them all."""

    seen: bool = False

    def look(self, module: Any, args: Sequence[Any]) -> None:
        super().look(module, args)
        assert self.rows is not None
        self.rows = self.rows & (args[0].positions > 12) & (args[0].positions < 15)
        self.seen |= bool(self.rows.any())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def made(folder: Path) -> dict[str, Any]:
    one = recipe(folder, QWEN3, steps=STEPS, eval_every=4, checkpoint_every=2, keep_checkpoints=4, pack_tokens=200)
    one["data"] |= {"context": 200, "step_samples": SAMPLES}
    return one


@pytest.fixture(scope="module")
def found(folder: Path, made: dict[str, Any]) -> dict[str, Any]:
    """What the first rank found, which is what the second did."""
    whole = documents(folder, 60).read_text(encoding="utf-8").splitlines(keepends=True)
    for name, first in (("skip", 5 * SAMPLES), ("rollback", 4 * SAMPLES)):
        (folder / f"{name}.jsonl").write_text("".join(whole[:first] + whole[6 * SAMPLES :]), encoding="utf-8")
    first, second = run_ranks(go_through, 2, made, folder)
    assert first.keys() == second.keys()
    for name in first:
        assert first[name] == second[name], name
    return first


def same(folder: Path, name: str, other: str) -> None:
    """To the bit, and no step is there twice; which rank writes which part of what all have is not told."""
    assert_same_run(folder / name, folder / other)
    assert [step for step in steps(folder / name) if step] == list(range(1, STEPS + 1))
    one, two = (Checkpoints(folder / run / "checkpoints").load(STEPS) for run in (name, other))
    for file in ("model", "optimizer"):
        assert_same_tensors(dict(one.tensors[file]), dict(two.tensors[file]))


def test_a_signal_to_one_rank_ends_all_after_the_update(folder: Path, found: dict[str, Any]) -> None:
    assert found["signal"] == [["SIGTERM"], [2, 4, 5], ["done"]]
    same(folder, "signal", "zero3")


def test_a_rank_whose_time_is_up_ends_all_after_the_update(folder: Path, found: dict[str, Any]) -> None:
    ended, there, resumed = found["time"]
    assert (ended, resumed) == (["max_time"], ["done"])
    assert 2 <= there[-1] < STEPS
    same(folder, "time", "ddp")


def test_what_one_rank_cannot_write_is_told_by_all_and_nothing_is_lost(folder: Path, found: dict[str, Any]) -> None:
    (kind, words), there, resumed = found["checkpoint"]
    assert kind == "RunError"
    assert words == (
        f"{step_folder(folder / 'checkpoint', 6)}: the checkpoint of step 6 could not be written: File too large "
        "(rank 1). The checkpoint of step 4 is whole."
    )
    assert (there[:2], resumed) == ([2, 4], ["done"])
    same(folder, "checkpoint", "zero3")
    (kind, words), there, resumed = found["metrics"]
    assert kind == "RunError"
    assert words == (
        f"{folder / 'metrics' / 'metrics.jsonl'}: the file could not be written: File too large. "
        f"Make room, then: danlu resume {folder / 'metrics'}."
    )
    assert (there[:2], resumed) == ([2, 4], ["done"])
    same(folder, "metrics", "zero3")


def test_a_part_that_is_damaged_is_named_and_the_step_before_goes_on(folder: Path, found: dict[str, Any]) -> None:
    file = step_folder(folder / "zero3", STEPS) / "model-00002-of-00002.safetensors"
    (kind, words), there, resumed = found["flipped"]
    assert kind == "CheckpointError"
    assert words == f"{file}: the file is altered: its checksum differs. Resume from the one before with --step 6."
    assert (there, resumed) == ([2, 4, 6, 8], ["done"])


def test_what_one_rank_cannot_read_is_told_by_all_and_what_was_learned_is_kept(
    folder: Path, found: dict[str, Any]
) -> None:
    (kind, words), there, resumed = found["data"]
    assert (kind, there, resumed) == ("DataError", [2, 4, 5], ["done"])
    assert words.startswith("some.jsonl:7: the line is not JSON. ")
    same(folder, "data", "zero3")


def test_a_process_that_stalls_for_one_rank_ends_all(folder: Path, found: dict[str, Any]) -> None:
    (kind, words), there, left, resumed = found["stalled"]
    assert kind == "RunError"
    assert "part" in words.split(":")[0]
    assert words.endswith(
        ":1: the documents from here on were not encoded within 1 s: a process has stalled. "
        "Go on by: danlu resume RUN; if it happens again, with data.workers=1."
    )
    assert there[-1] >= 2
    assert (left, resumed) == ([], ["done"])
    same(folder, "stalled", "not stalled")


def test_a_rank_that_has_nothing_to_learn_from_is_no_fault_and_all_of_them_are(
    folder: Path, made: dict[str, Any], found: dict[str, Any]
) -> None:
    one, (kind, words), there, shares = found["masked"]
    assert one == ["done"]
    assert kind == "RunError"
    assert words.startswith("step 3 has nothing to learn from: its count of 'nll' is 0 on samples ")
    assert there == [2]
    with masked(shares[1], 0.0):
        alone = danlu.train(made, f"run.out={folder / 'masked alone'}", EPS).path
    ours, theirs = weights(folder / "masked"), weights(alone)
    assert largest_difference(list(ours.values()), [theirs[name] for name in ours]) < 1e-6


@pytest.mark.parametrize("layout", ["ddp", "zero3", "ring"])
def test_one_sample_that_is_not_finite(folder: Path, found: dict[str, Any], layout: str) -> None:
    bad, (kind, words), there = found[f"{layout} not finite"]
    sentence = (
        f"the loss or gradient of step 6 is not finite because of {bad}; the weights of the targets are not finite"
    )
    assert kind == "RunError"
    assert words.startswith(f"{sentence}; no weight was changed. ")
    assert there == [2, 4, 5]
    for policy in ("skip", "rollback"):
        run = folder / f"{layout} {policy}"
        same(folder, run.name, f"{run.name} oracle")
        told = [event["message"] for event in lines(run / "events.jsonl") if event["kind"] == policy]
        assert told == [sentence]
    same(folder, f"{layout} stop", f"{layout} skip")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", ["output", "backward"])
def test_a_ring_finds_the_sample_and_the_layer(found: dict[str, Any], mode: str, way: str) -> None:
    bad, count, seen, layer, sentence = found[f"{mode} {way}"]
    assert (seen, layer) == (way, "layers.1.mlp")
    assert f"is not finite because of {bad}; " in sentence
    assert count == SAMPLES
