"""A run from beginning to end: its directory, its loop, its result."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from safetensors import SafetensorError

from danlu.acting_experiment import assemble_acting
from danlu.build import assemble
from danlu.checking import diagnose
from danlu.density_experiment import assemble_density
from danlu.engine.device import device_kind, keep_freed_memory
from danlu.engine.launch import joined, leave_word, word_left
from danlu.engine.lock import locked
from danlu.engine.ranks import ALONE, Ranks
from danlu.engine.record import Listener, Recorder, TensorBoard, WeightsAndBiases, require_loggers
from danlu.errors import DanluError, DataError, RunError
from danlu.experiment import Experiment
from danlu.insight.doctor import Diagnosis, summary_line, write_html
from danlu.insight.report import write_report
from danlu.parts.compiled import compilation
from danlu.reading import AnyRecipe, dump_recipe, read_recipe
from danlu.recipe import Recipe
from danlu.recipe_acting import ActingRecipe
from danlu.run_facts import AnyExperiment, data_facts, model_facts, plan, versions
from danlu.run_folder import (
    begin,
    changes_since,
    choose_folder,
    last_metrics,
    make_folder,
    recipe_of,
    require_checkpoint,
    write_recipe,
)

_LOOKED_AT = 2000
"""Rows that are looked at before a run."""


@dataclass(frozen=True)
class Run:
    """What became of a run.

    Attributes:
        path: its directory.
        reason: why it ended: "done", "max_time", or the signal's name.
        metrics: the last row that was measured on held-out data, or the last row there is.
    """

    path: Path
    reason: str
    metrics: Mapping[str, Any]


def train(
    recipe: str | Path | Mapping[str, Any] | AnyRecipe, *overrides: str, listeners: Sequence[Listener] = ()
) -> Run:
    """Train as a recipe says.

    Args:
        recipe: a path, a built-in name, a dictionary or a recipe.
        overrides: "dotted.key=value".
        listeners: who else hears of each step.

    Raises:
        DanluError: a sentence for whatever is wrong, before anything is written where that can be told.
    """
    keep_freed_memory()
    loaded = read_recipe(recipe, overrides)
    require_loggers(loaded.run.loggers)
    with joined(device_kind(loaded.run.device)) as ranks, ranks.together():
        name, begun = ranks.lead(lambda: choose_folder(loaded, recipe))
        run = Path(name)
        if begun:
            return _resumed(run, overrides, ranks, listeners)
        with compilation(loaded.run.compile), closing(_assembled(loaded, ranks)) as experiment:
            diagnosis = _examined(experiment)
            ranks.lead(lambda: make_folder(run))
            with locked(run, ranks) as note:
                ranks.lead(lambda: begin(run, experiment.recipe, versions(experiment)))
                return _carry_out(run, experiment, listeners, diagnosis=diagnosis, notes=[] if note is None else [note])


def resume(run: str | Path, *overrides: str, step: int | None = None, listeners: Sequence[Listener] = ()) -> Run:
    """Go on with a run from its last checkpoint, or from that of a step.

    Raises:
        DanluError: when there is no such run, or nothing whole to go on from.
    """
    keep_freed_memory()
    run = Path(run)
    wanted = recipe_of(run, overrides).run.device
    with joined(device_kind(wanted)) as ranks, ranks.together():
        return _resumed(run, overrides, ranks, listeners, step)


def _resumed(
    run: Path, overrides: Sequence[str], ranks: Ranks, listeners: Sequence[Listener], step: int | None = None
) -> Run:
    recipe = recipe_of(run, overrides)
    with locked(run, ranks) as note:
        ranks.lead(lambda: require_checkpoint(run))
        if ranks.lead(lambda: word_left() == str(run)):
            step = None  # an earlier attempt of this launch has gone back there already, and come further
        told = [*([] if note is None else [note]), *ranks.lead(lambda: changes_since(run, recipe, step))]
        with compilation(recipe.run.compile), closing(_assembled(recipe, ranks)) as experiment:
            return _carry_out(run, experiment, listeners, resuming=True, step=step, notes=told)


def _assembled(recipe: AnyRecipe, ranks: Ranks = ALONE) -> AnyExperiment:
    if isinstance(recipe, Recipe):
        return assemble(recipe, ranks)
    return assemble_acting(recipe, ranks) if isinstance(recipe, ActingRecipe) else assemble_density(recipe, ranks)


def _examined(experiment: AnyExperiment) -> Diagnosis | None:
    """The doctor's short form, which one rank asks for.

    Raises:
        DataError: when it sees a row that would stop the run later.
    """
    if not isinstance(experiment, Experiment):
        return None
    seen: list[Diagnosis] = []
    experiment.ranks.lead(lambda: seen.append(_diagnosed(experiment)))
    return seen[0] if seen else None


def _diagnosed(experiment: Experiment) -> Diagnosis:
    diagnosis = diagnose(experiment.recipe, experiment.data.documents, _LOOKED_AT)
    stopping = (found for found in diagnosis.findings if found.name in ("unreadable", "refused") and found.examples)
    found = next(stopping, None)
    if found is not None and experiment.recipe.data.quarantine is None:
        example = found.examples[0]
        raise DataError(example.what, where=example.where, do=f"{found.do} `danlu check` lists all of them.")
    return diagnosis


def dry_run(recipe: str | Path | Mapping[str, Any] | AnyRecipe, *overrides: str) -> dict[str, Any]:
    """Make and check everything a recipe names, write nothing, and say what would run, on one process."""
    loaded = read_recipe(recipe, overrides).alone
    require_loggers(loaded.run.loggers)
    choose_folder(loaded, recipe)
    with closing(_assembled(loaded)) as experiment:
        return plan(experiment)


def _carry_out(
    run: Path,
    experiment: AnyExperiment,
    listeners: Sequence[Listener],
    *,
    diagnosis: Diagnosis | None = None,
    resuming: bool = False,
    step: int | None = None,
    notes: Sequence[str] = (),
) -> Run:
    recipe = experiment.recipe
    extra: dict[str, Callable[[], Listener]] = {
        "tensorboard": lambda: TensorBoard(run),
        "wandb": lambda: WeightsAndBiases(run, dump_recipe(recipe)),
    }
    ranks = experiment.ranks
    hearing = [*listeners, *(extra[name]() for name in recipe.run.loggers)] if ranks.leads else []
    recorder = Recorder(run, hearing, silent=not ranks.leads)
    with ExitStack() as stack:
        stack.callback(recorder.close)
        stopping = stack.enter_context(_signals())
        loop = experiment.loop(run, recorder, stopping)
        stack.callback(loop.history.checkpoints.close)
        if resuming:
            restored = loop.history.restore(step)
            ranks.wait()  # for what any of them may have against it, before what is later goes
            loop.history.forget_later()
            ranks.lead(lambda: _take_up(run, restored, loop.progress.time, recorder, recipe))
            leave_word(str(run))
            recorder.event("resume", step=restored, steps=experiment.steps)
        else:
            recorder.event("start", steps=experiment.steps)
        told = data_facts(experiment)
        recorder.event(told[0], **told[1])
        for note in notes:
            recorder.event("note", message=note)
        if ranks.size > 1:
            recorder.event("ranks", size=ranks.size, parallel=experiment.parallel.mode)
        if not resuming:
            _introduce(run, experiment, diagnosis, recorder)
        start = time.perf_counter()
        try:
            reason = loop.run()
        except DanluError as error:
            with suppress(RunError):  # where nothing can be written, the first error is the one to tell
                recorder.event("warning", message=str(error))
            if isinstance(error, DataError) and isinstance(recipe, Recipe) and recipe.data.quarantine is None:
                way_on = f"Or go on without such rows: danlu resume {run} data.quarantine=DIR."
                raise DataError(error.what, where=error.where, do=f"{error.do} {way_on}".strip()) from error
            raise
        if reason == "done":
            experiment.export(run / "final", lambda: _writing(run, "the end of the run"))
        if (now := data_facts(experiment)) != told:  # what was read only later
            recorder.event(now[0], **now[1])
        recorder.event("end", step=loop.progress.step, reason=reason, seconds=time.perf_counter() - start)
        ranks.lead(lambda: _report(run))
        return Run(run, reason, ranks.lead(lambda: last_metrics(run)))


def _report(run: Path) -> None:
    with _writing(run, "the end of the run"):
        write_report(run)


def _take_up(run: Path, step: int, then: float, recorder: Recorder, recipe: AnyRecipe) -> None:
    """Leave no row in a run's directory that is later than the checkpoint it goes on from."""
    recorder.cut_back(step, then)
    with _writing(run, "the recipe"):
        write_recipe(run, recipe)  # an override holds for later resumes, too


def _introduce(run: Path, experiment: AnyExperiment, diagnosis: Diagnosis | None, recorder: Recorder) -> None:
    """Write down what is trained, and what the doctor saw."""
    recorder.event("model", **model_facts(experiment))
    for note in experiment.notes:
        recorder.event("note", message=note)
    if diagnosis is not None:
        write_html(diagnosis, run / "data.html")
        recorder.event("doctor", message=summary_line(diagnosis))


@contextmanager
def _writing(run: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        hint = f"Make room, then: danlu resume {run}."
        raise RunError(f"{what} cannot be written: {error}", where=run, do=hint) from error


@contextmanager
def _signals() -> Iterator[Callable[[], str | None]]:
    """While a run goes, SIGINT and SIGTERM end it after the current update; a second one ends it at once."""
    caught: list[str] = []

    def note(number: int, _: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(signal.Signals(number).name)

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are someone else's
        before = {}
    try:
        yield lambda: caught[0] if caught else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
