"""Everything a recipe of a density names, made and checked: an experiment that is ready to run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from danlu.data.arrays import Arrays, ArraySource, Facts, load_arrays
from danlu.density import Rows
from danlu.density_files import density_of, save_density
from danlu.density_shown import shown
from danlu.engine.checkpoint import Checkpoints
from danlu.engine.device import Device
from danlu.engine.history import History
from danlu.engine.loop import Loop
from danlu.engine.parallel import Parallel, Replicated
from danlu.engine.ranks import ALONE, Ranks
from danlu.engine.record import Recorder
from danlu.engine.rows import RowUpdater
from danlu.errors import DataError, RecipeError
from danlu.parts.frame import Frame
from danlu.parts.framed import Framed
from danlu.reading import dump_recipe
from danlu.recipe_density import DensityRecipe
from danlu.registry import name_of
from danlu.turning import Shown, loop_over, planned

_SHOWN = 2000
"""Held-out rows that are looked at, at most."""


@dataclass(frozen=True)
class DrawnRows:
    """A source of indices as one of rows.

    Attributes:
        indices: draws, and knows how far it has come.
        arrays: the rows.
    """

    indices: ArraySource
    arrays: Arrays

    def draw(self) -> Sequence[Rows]:
        """See `Source`."""
        at, num = self.indices.consumed, len(self.arrays)
        drawn, rows = self.indices.draw(), []
        several = (at + sum(map(len, drawn)) - 1) // num > at // num
        for chosen in drawn:
            visit = torch.arange(at, at + len(chosen)) // num if several else None
            rows.append(rows_of(self.arrays, chosen, visit))
            at += len(chosen)
        return rows

    @property
    def exhausted(self) -> bool:
        """See `Source`."""
        return self.indices.exhausted

    @property
    def epochs(self) -> float:
        """See `Source`."""
        return self.indices.epochs

    def state_dict(self) -> dict[str, Any]:
        """See `Source`; which rows these are, too."""
        return self.indices.state_dict() | {"data": self.fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Source`.

        Raises:
            DataError: when the state is of other rows.
        """
        self.indices.load_state_dict(state)
        if state.get("data") != self.fingerprint:
            what = "the run learned from other rows than these, of which there were as many"
            raise DataError(what, where=self.arrays.origin, do="Give it the data it began with, or start anew.")

    @cached_property
    def fingerprint(self) -> str:
        """By which its rows are told from others."""
        return self.arrays.fingerprint()


def rows_of(arrays: Arrays, chosen: np.ndarray, visit: Tensor | None = None) -> Rows:
    """Some rows by their numbers."""
    x, condition = arrays.take(chosen)
    told = None if condition is None else torch.from_numpy(condition)
    return Rows.of(torch.from_numpy(x), told, torch.from_numpy(chosen), visit)


@dataclass(frozen=True)
class DensityExperiment:
    """Everything a recipe of a density names, made and checked; nothing has been trained or written.

    Attributes:
        recipe: what is to be.
        device: where.
        train: the rows that it learns from.
        measured: the rows that it is measured on.
        policy: the density, and how rows are shown to it.
        parallel: how it lies over ranks.
        began: when it was begun to be made, by `time.monotonic`.
    """

    recipe: DensityRecipe
    device: Device
    train: Arrays
    measured: Arrays
    policy: Framed
    parallel: Parallel
    began: float

    @property
    def ranks(self) -> Ranks:
        """The processes of the run."""
        return self.parallel.ranks

    @property
    def steps(self) -> int:
        """Updates of the run."""
        settings = self.recipe.run
        passes = len(self.train) * (settings.epochs or 0)
        by_epochs = -(-passes // self.recipe.data.step_rows) if settings.epochs else None
        return min(n for n in (settings.steps, by_epochs) if n is not None)

    @property
    def notes(self) -> tuple[str, ...]:
        """What one should know of it."""
        return self.recipe.method.notes

    def close(self) -> None:
        """Nothing works in the background."""

    @property
    def facts(self) -> Facts:
        """What its rows are."""
        return Facts.of(self.train)

    def rows_facts(self) -> dict[str, Any]:
        """What it learns from, for a person."""
        return {
            "shape": list(self.facts.shape),
            "origin": self.facts.origin,
            "classes": len(self.facts.classes),
            "features": len(self.facts.features),
            "rows": len(self.train),
            "held_out_rows": len(self.measured),
            "method": name_of(type(self.recipe.method)),
        }

    def source(self) -> DrawnRows:
        """What it learns from: steps, each cut so that every rank has as many groups as another."""
        recipe, size = self.recipe, self.recipe.data.step_rows
        together, ranks = recipe.method.together, self.parallel.shares
        if together is not None and size % (together * ranks):
            what = f"{together} rows are seen together, and data.step_rows ({size}) is not a multiple of that"
            more = "" if ranks == 1 else f" times the {ranks} ranks"
            raise RecipeError(f"{what}{more}", where="data.step_rows", do=f"Set {together * ranks}, say.")
        if together is not None and together > recipe.run.pack_rows:
            what = f"{together} rows are seen together, and run.pack_rows lets {recipe.run.pack_rows} through at once"
            raise RecipeError(what, where="run.pack_rows", do=f"Set it to {together} or more.")
        block = together or min(recipe.run.pack_rows, -(-size // ranks))
        source = ArraySource(len(self.train), size, block=block, seed=recipe.run.seed, epochs=recipe.run.epochs)
        return DrawnRows(source, self.train)

    def updater(self) -> RowUpdater:
        """What moves the weights."""
        recipe = self.recipe
        return RowUpdater(
            models={recipe.method.roles[0]: self.policy},
            method=recipe.method,
            optimizer=recipe.optimizer.build(self.policy),
            device=self.device.torch,
            pack_tokens=recipe.run.pack_rows,
            clip_norm=recipe.optimizer.clip_norm,
            seed=recipe.run.seed,
            parallel=self.parallel,
            image_size=self.facts.size if self.facts.kind == "image" else None,
        )

    def held_out(self) -> Iterator[Rows]:
        """The rows it is measured on, some at a time."""
        num = len(self.measured)
        size = self.recipe.method.together or min(self.recipe.run.pack_rows, -(-num // self.ranks.size))
        for begin in range(0, num, size):
            yield rows_of(self.measured, np.arange(begin, min(begin + size, num)))

    def loop(self, run: Path, recorder: Recorder, stopping: Callable[[], str | None]) -> Loop:
        """The loop over these parts, writing into a run's directory."""
        recipe, settings = self.recipe, self.recipe.run
        return loop_over(
            self.updater(),
            self.source(),
            checkpoints=Checkpoints(run / "checkpoints", self.ranks),
            settings=settings,
            guards=settings.guards,
            plan=planned(settings, self.steps, recipe.optimizer.lr),
            schedule=recipe.optimizer.schedule,
            device=self.device,
            began=self.began,
            steps=self.steps,
            recorder=recorder,
            identity={"recipe": dump_recipe(recipe), "base": None, "asked": {}},
            held_out=self.held_out,
            shown=lambda history: self._shown(run, history),
            stopping=stopping,
            again=True,
        )

    def _shown(self, run: Path, history: History) -> Shown:
        """What there is to see of it; the first rank looks."""
        if not self.ranks.leads:
            return
        rows = rows_of(self.measured, np.arange(min(len(self.measured), _SHOWN)))
        final = history.progress.step >= self.steps
        where = self.device.torch
        seed = self.recipe.run.seed
        yield "density", shown(self.policy, rows.to(where), self.facts, seed=seed, final=final, folder=run)

    def export(self, directory: Path, writing: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """Write the density: its tensors, and what it is made from; the first rank does."""
        self.ranks.wait()

        def write() -> None:
            with writing():
                save_density(self.policy, self.recipe, self.facts, directory)

        self.ranks.lead(write)


def assemble_density(recipe: DensityRecipe, ranks: Ranks = ALONE) -> DensityExperiment:
    """Make and check everything a recipe of a density names.

    Args:
        recipe: what is to be.
        ranks: the processes that do it, of which this is one.

    Raises:
        RecipeError, DataError, UnsupportedError: for what cannot be made.
    """
    began = time.monotonic()
    device = Device.choose(recipe.run.device, recipe.run.threads, ranks)
    with ranks.together():
        train, measured = load_arrays(recipe.data, recipe.run.seed)
        frame = Frame.fitted(train, logit=recipe.data.logit, standardize=recipe.data.standardize, seed=recipe.run.seed)
        framed = density_of(recipe, Facts.of(train), frame)
        parallel = Parallel() if ranks.size == 1 else Replicated(ranks)
        parallel.lay_out(framed, device.torch)
    experiment = DensityExperiment(recipe, device, train, measured, framed, parallel, began)
    experiment.source()  # which refuses steps that cannot be cut
    return experiment
