"""What is found: a finding, and the two ways to look for one.

A `Rule` looks at one row by itself and says what is wrong with it. A `Survey` sees all rows, one after another, and
says at the end what it found among them. `checks.py` lists them all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, final

from danlu.insight.doctor.case import Case, Setting
from danlu.insight.doctor.characters import visible

Severity: TypeAlias = Literal["error", "warning", "note"]
"""An error: the row cannot be used. A warning: it is used, and hardly as it was meant. A note: good to know."""
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Example:
    """A row that was found: ``file:line``, and what of it."""

    where: str
    what: str


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found.

    Attributes:
        name: of the kind, as "empty_answer".
        severity: see `Severity`.
        title: what it is, as "rows without text".
        count: of how many rows, or of answers where the title speaks of answers.
        examples: the first of them.
        do: what to do about it.
    """

    name: str
    severity: Severity
    title: str
    count: int
    examples: tuple[Example, ...]
    do: str


@dataclass
class Tally:
    """A count, and the first few of what is counted."""

    limit: int
    count: int = 0
    examples: list[Example] = field(default_factory=list)

    def add(self, where: str, what: str) -> None:
        """Count one more row."""
        self.count += 1
        self.show(where, what)

    def show(self, where: str, what: str) -> None:
        """Name a row that is counted already, while there is room."""
        if len(self.examples) < self.limit:
            self.examples.append(Example(visible(where), visible(what)))

    def finding(self, name: str, severity: Severity, title: str, do: str) -> Iterator[Finding]:
        """What was counted, if anything was."""
        if self.count:
            yield Finding(name, severity, title, self.count, tuple(self.examples), do)


class Survey(ABC):
    """Looks at all rows, in a memory that is bounded or a few bytes a row."""

    @abstractmethod
    def see(self, case: Case) -> None:
        """One row, training rows before those held out."""

    @abstractmethod
    def findings(self) -> Iterator[Finding]:
        """What it found among the rows it has seen."""


Check: TypeAlias = Callable[[Setting], Survey]
"""What begins a survey: a `Rule`, or the class of a survey."""
Look: TypeAlias = Callable[[Case], str | None]


@final
@dataclass(frozen=True)
class Rule:
    """Looks at one row by itself; `rule` makes one of a function.

    Attributes:
        look: what is wrong with a row, if anything is.
        name: of the finding.
        severity: of the finding.
        title: of the finding.
        do: of the finding.
    """

    look: Look
    name: str
    severity: Severity
    title: str
    do: str

    def __call__(self, setting: Setting) -> Survey:
        """Begin to ask it about rows."""
        return _Rounds(self, setting)


def rule(severity: Severity, title: str, do: str) -> Callable[[Look], Rule]:
    """Make a rule of a function that looks at a row; its name is the finding's."""
    return lambda look: Rule(look, look.__name__, severity, title, do)


@final
class _Rounds(Survey):
    """One rule, asked about every row."""

    def __init__(self, asked: Rule, setting: Setting) -> None:
        self._asked = asked
        self._tally = Tally(setting.num_examples)

    def see(self, case: Case) -> None:
        what = self._asked.look(case)
        if what is not None:
            self._tally.add(case.row.where, what)

    def findings(self) -> Iterator[Finding]:
        return self._tally.finding(self._asked.name, self._asked.severity, self._asked.title, self._asked.do)
