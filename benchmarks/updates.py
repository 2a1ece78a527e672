"""Updates of an experiment without the rest of a run, as benchmarks time them in a child."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from benchmarks import settings

if TYPE_CHECKING:
    from danlu.batch import Batch
    from danlu.engine.update import Measured, Updater
    from danlu.experiment import Experiment


@contextmanager
def compiled(recipe: Mapping[str, Any]) -> Iterator[Experiment]:
    """A recipe's experiment, whose blocks are compiled in what is done within."""
    from danlu.build import assemble
    from danlu.engine.device import keep_freed_memory
    from danlu.parts.compiled import compilation
    from danlu.reading import load_recipe

    keep_freed_memory()  # as `danlu.train` does
    with compilation(True), closing(assemble(load_recipe(recipe))) as experiment:
        yield experiment


def update(updater: Updater, groups: Sequence[Batch]) -> Measured:
    """One update, as the loop takes it."""
    measured = updater.gradient(groups, 0)
    updater.clip()
    updater.move(settings.LEARNING_RATE)
    return measured
