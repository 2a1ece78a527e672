"""What a check is, and what it says."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from danlu.errors import DanluError, DataError
from danlu.verifying.subject import Subject

Verdict: TypeAlias = Literal["holds", "fails", "does not apply"]
"""Of a check: its error is within its tolerance, or is not; or there is nothing here for it to measure."""


@dataclass(frozen=True)
class Measured:
    """What a check found.

    Attributes:
        what: it measured, in a few words.
        error: the worst it saw, ``>= 0``; nan is no better than infinite.
        tolerance: what the error is held to.
        fault: what is wrong where the error is larger, a sentence.
    """

    what: str
    error: float
    tolerance: float
    fault: str


def size(error: float) -> float:
    """An error to be compared with others: nan is the worst."""
    return math.inf if math.isnan(error) else error


class Inapplicable(Exception):  # noqa: N818 - it is no error
    """A check has nothing to measure here; its text is the reason, a sentence."""


@dataclass(frozen=True)
class Checked:
    """One row of the table.

    Attributes:
        name: of the check, for programs.
        title: of the check, for people.
        measured: what was measured; "" where nothing was.
        error: the worst that was seen; None where nothing could be measured, or it was not finite.
        tolerance: what the error is held to; None where nothing could be measured.
        verdict: see `Verdict`.
        sentence: what holds, what is wrong, or why the check does not apply.
        seconds: what it took.
    """

    name: str
    title: str
    measured: str
    error: float | None
    tolerance: float | None
    verdict: Verdict
    sentence: str
    seconds: float


@dataclass(frozen=True)
class Check:
    """A promise that can be measured; `check` makes one of a function.

    Attributes:
        name: of the function.
        title: in a few words.
        statement: what holds if it holds, a sentence.
        look: measures it.
    """

    name: str
    title: str
    statement: str
    look: Callable[[Subject], Measured]

    def __call__(self, subject: Subject) -> Checked:
        """Measure it; whatever goes wrong within is a failure of what is measured.

        Raises:
            DataError: when a row of the data cannot be used, which is no matter of the check.
        """
        start = time.perf_counter()

        def told(verdict: Verdict, sentence: str, measured: Measured | None = None) -> Checked:
            what, tolerance = ("", None) if measured is None else (measured.what, measured.tolerance)
            error = None if measured is None or not math.isfinite(measured.error) else measured.error
            seconds = time.perf_counter() - start
            return Checked(self.name, self.title, what, error, tolerance, verdict, sentence, seconds)

        try:
            measured = self.look(subject)
        except Inapplicable as reason:
            return told("does not apply", str(reason))
        except DataError:
            raise
        except DanluError as error:
            return told("fails", str(error))
        except Exception as error:  # of the model, the method or another library: that is what is looked at
            first = next(iter(str(error).splitlines()), "")
            return told("fails", f"It came to no end: {type(error).__name__}: {first.rstrip('.')}.")
        if measured.error <= measured.tolerance:
            return told("holds", self.statement, measured)
        return told("fails", measured.fault, measured)


def check(title: str) -> Callable[[Callable[[Subject], Measured]], Check]:
    """Make a check of a function; the first line of its docstring is the statement."""

    def made(look: Callable[[Subject], Measured]) -> Check:
        statement = (look.__doc__ or "").strip().splitlines()[0]
        return Check(look.__name__, title, statement, look)

    return made


@dataclass(frozen=True)
class Verification:
    """What came of all checks.

    Attributes:
        device: where they were measured.
        architecture: of the model.
        samples: how many of the user's own samples were looked at.
        tokens: how many tokens these have.
        checks: one row each.
    """

    device: str
    architecture: str
    samples: int
    tokens: int
    checks: tuple[Checked, ...]

    @property
    def holds(self) -> bool:
        """Whether no check fails."""
        return all(checked.verdict != "fails" for checked in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """As JSON.

        Returns:
            ``holds`` (bool), ``device``, ``architecture`` (str), ``samples``, ``tokens`` (int), and ``checks``, a list
            with the fields of `Checked`: ``name``, ``title``, ``measured``, ``verdict``, ``sentence`` (str), ``error``,
            ``tolerance`` (number or null) and ``seconds`` (number).
        """
        return {"holds": self.holds, **asdict(self), "checks": [asdict(checked) for checked in self.checks]}
