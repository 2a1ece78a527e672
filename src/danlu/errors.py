"""The exception tree.

```
DanluError
├── RecipeError        a recipe or an option that cannot be meant
├── DataError          a data file that cannot be read as it is
├── CheckpointError    a checkpoint or model directory that is absent, incomplete or altered
├── UnsupportedError   a combination that this device or model cannot run correctly
├── ConvergenceError   an equation that was not solved to the accuracy that was asked for
└── RunError           a run that had to stop
```

Every one is a sentence a user can act on: what went wrong, where, and what to do. The command line prints it without a
traceback and exits with a non-zero status.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class DanluError(Exception):
    """What went wrong, where, and what to do about it.

    Attributes:
        told: whether all ranks of a run know of it.

    Example:
        >>> str(DataError("the line is not JSON", where="a.jsonl:3", do="Remove or repair it."))
        'a.jsonl:3: the line is not JSON. Remove or repair it.'
    """

    def __init__(self, what: str, *, where: str | Path | None = None, do: str = "") -> None:
        self.what = what.rstrip(".")
        self.where = None if where is None else str(where)
        self.do = do
        self.told = False
        super().__init__(what, where, do)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.what}.{' ' + self.do if self.do else ''}"

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip back from a worker process."""
        return _rebuild, (type(self), self.what, self.where, self.do)


def _rebuild(kind: type[DanluError], what: str, where: str | None, do: str) -> DanluError:
    return kind(what, where=where, do=do)


class RecipeError(DanluError):
    """A recipe or an option that cannot be meant."""


class DataError(DanluError):
    """A data file that cannot be read as it is."""


class CheckpointError(DanluError):
    """A checkpoint or model directory that is absent, incomplete or altered."""


class UnsupportedError(DanluError):
    """A combination that this device or model cannot run correctly."""


class ConvergenceError(DanluError):
    """An equation that was not solved to the accuracy that was asked for."""


class RunError(DanluError):
    """A run that had to stop."""


def name_of(error: DanluError) -> str:
    """The name of the class of this tree that an error is of, for another process."""
    return next(kind.__name__ for kind in type(error).__mro__ if DanluError in (kind, *kind.__bases__))


def error_named(name: str) -> type[DanluError]:
    """The class of this tree that has a name, as another process told it."""
    return next((kind for kind in DanluError.__subclasses__() if kind.__name__ == name), DanluError)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A suggestion for a misspelt name, or the whole list when nothing is near.

    Example:
        >>> did_you_mean("lerning_rate", ["learning_rate", "seed"])
        "Did you mean 'learning_rate'?"
        >>> did_you_mean("zzz", ["b", "a"])
        'Known: a, b.'
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"Did you mean '{near[0]}'?"
    return f"Known: {', '.join(names)}." if names else ""
