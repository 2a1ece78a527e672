"""What two ranks go through together, and what each of them finds."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import danlu
from danlu.build import assemble
from danlu.data import DataSource
from danlu.engine.guards.clock import Clock
from danlu.engine.guards.nonfinite import trace_nonfinite
from danlu.engine.launch import launched
from danlu.engine.update import Updater
from danlu.errors import DanluError, DataError
from danlu.reading import load_recipe

from .faults import encoders, masked, part, processes_for_little, stop_encoders
from .runs import (
    checkpoints,
    flip,
    pointed,
    step_folder,
)
from .test_checkpoint import no_file_larger_than
from .test_guards_nonfinite import Fragile, Marked

STEPS = 8
LONG = "run.steps=60"
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

            def fill(run: Path = self.folder / name, limit: Any = limit) -> None:
                while not (run / "checkpoints" / "last").exists() or pointed(run, "last") < 4:  # on its way
                    time.sleep(0.001)
                limit.__enter__()

            with after(6, rank, fill):
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
    every.note("launched", every.resume("launched"), every.train("long", "run.parallel=zero3", LONG))
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


class Late(Marked):
    """The rows of some samples that lie behind the first few: of two ranks of a ring, one has them all."""

    seen: bool = False

    def look(self, module: Any, args: Sequence[Any]) -> None:
        super().look(module, args)
        assert self.rows is not None
        self.rows = self.rows & (args[0].positions > 12) & (args[0].positions < 15)
        self.seen |= bool(self.rows.any())
