"""A run's directory: where it is, what is in it before anything was trained, and what it was when it is taken up."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from danlu.engine.checkpoint import Checkpoints
from danlu.engine.launch import launch_began, leave_word, word_left
from danlu.engine.lock import LOCK
from danlu.engine.record import rows_of
from danlu.errors import RunError
from danlu.reading import AnyRecipe, dump_recipe, read_recipe
from danlu.resuming import changes, refuse_or_tell
from danlu.yaml_text import to_yaml

_RECIPE = "recipe.yaml"


def choose_folder(loaded: AnyRecipe, source: object) -> tuple[str, bool]:
    """Where a run goes, and whether it is there to be gone on with; nothing is made or removed.

    That is so when it was begun by an earlier attempt of this launch: `torchrun` makes another when a process was lost.

    Raises:
        RunError: when it exists otherwise.
    """
    named = isinstance(source, str | Path)
    name = re.sub(r"[^\w.-]+", "-", Path(str(source)).stem) if named else "run"
    run = Path(loaded.run.out or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(launch_began()))}")
    begun = bool(Checkpoints(run / "checkpoints").steps())
    if word_left() == str(run):
        return str(run), begun
    if run.exists() and (not run.is_dir() or _content(run)):
        hint = "There is no checkpoint in it to go on from: choose another run.out, or remove it."
        if begun:
            hint = f"Go on with it by: danlu resume {run}; or choose another run.out."
        raise RunError("the run directory exists", where=run, do=hint)
    return str(run), False


def make_folder(run: Path) -> None:
    """Have a run's directory, once everything is checked; what is in it waits for its lock.

    Raises:
        RunError: when it cannot be made.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"the run directory cannot be written: {error.strerror}", where=run) from error


def _content(run: Path) -> list[Path]:
    return [entry for entry in run.iterdir() if entry.name != LOCK]


def write_recipe(run: Path, recipe: AnyRecipe) -> None:
    """Write down what the run is, whole or not at all."""
    unfinished = run / f".{_RECIPE}"
    unfinished.write_text(to_yaml(dump_recipe(recipe)), encoding="utf-8")
    unfinished.replace(run / _RECIPE)


def begin(run: Path, recipe: AnyRecipe, versions: Mapping[str, Any]) -> None:
    """Write down what a run is, in a directory that is locked.

    Raises:
        RunError: when another run is there, or it cannot be written; then nothing is left of it.
    """
    if (there := _content(run)) and word_left() != str(run):
        raise RunError("another run has begun there meanwhile", where=run, do="Choose another run.out.")
    try:
        for entry in there:  # an earlier attempt of this launch, lost before there was anything to go on from
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        leave_word(str(run))
        write_recipe(run, recipe)
        (run / "versions.json").write_text(json.dumps(versions, indent=1))
    except OSError as error:
        shutil.rmtree(run, ignore_errors=True)
        raise RunError(f"the run directory cannot be written: {error.strerror}", where=run) from error


def require_checkpoint(run: Path) -> None:
    """See that there is something to go on from.

    Raises:
        RunError: when there is not.
    """
    if not Checkpoints(run / "checkpoints").steps():
        hint = f"Begin it anew elsewhere: danlu train {run / _RECIPE} run.out=DIR."
        raise RunError("the run ended before its first checkpoint", where=run, do=hint)


def changes_since(run: Path, recipe: AnyRecipe, step: int | None) -> list[str]:
    """What is not as it was when the checkpoint was written, a sentence each.

    Raises:
        RecipeError: for what may not change.
    """
    then = Checkpoints(run / "checkpoints").peek(step)
    if "recipe" not in then:
        return []
    done = then.get("progress", {})
    told = changes(then["recipe"], dump_recipe(recipe), step=done.get("step"), epochs=done.get("epochs", 0.0))
    return refuse_or_tell(told, run)


def recipe_of(run: Path, overrides: Sequence[str]) -> AnyRecipe:
    """What a run is, with overrides.

    Raises:
        RunError: when it is no run.
    """
    if not (run / _RECIPE).is_file():
        raise RunError("this is no run: it has no recipe.yaml", where=run, do="Give the directory of a run.")
    return read_recipe(run / _RECIPE, overrides)


def last_metrics(run: Path) -> dict[str, Any]:
    """The last row that was measured on held-out data, or the last row there is."""
    rows = list(rows_of(run / "metrics.jsonl"))
    measured = [row for row in rows if any(name.startswith("held_out_") for name in row)]
    last: dict[str, Any] = (measured or rows or [{}])[-1]
    return last
