"""What a doctor says in the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from danlu.insight.doctor.case import Fate, TooLong
from danlu.insight.doctor.finding import SEVERITIES, Finding, Severity
from danlu.insight.doctor.lengths import Histogram
from danlu.insight.doctor.sample import Sample
from danlu.units import percent

_LEFT_OUT: dict[Fate, str] = {
    "unreadable": "unreadable",
    "empty": "without text",
    "unlearned": "with nothing to learn",
    "refused": "too long",
}


@dataclass(frozen=True)
class Side:
    """The rows to train on, or those held out.

    Attributes:
        shapes: rows of each shape; "" is those that could not be read.
        fates: what becomes of how many; every row has one fate.
        samples: pieces of at most `context` targets that the used rows are cut into.
        tokens: tokens of the used rows, without those that are cut off.
        learned: how many of these count in the loss.
    """

    shapes: Mapping[str, int]
    fates: Mapping[Fate, int]
    samples: int
    tokens: int
    learned: int

    @property
    def rows(self) -> int:
        """All rows."""
        return sum(self.fates.values())

    @property
    def used(self) -> int:
        """The rows that are used."""
        return self.fates["used"]

    @property
    def share_learned(self) -> float:
        """The share of tokens that count in the loss."""
        return self.learned / self.tokens if self.tokens else 0.0

    def as_dict(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        counts = {"samples": self.samples, "tokens": self.tokens, "learned": self.learned}
        fates = {str(fate): num for fate, num in self.fates.items()}
        return {"rows": self.rows, "shapes": dict(self.shapes), **fates, **counts}

    @property
    def left_out(self) -> str:
        """How many rows are not used, and why; empty where all are."""
        return ", ".join(f"{self.fates[fate]:,} {words}" for fate, words in _LEFT_OUT.items() if self.fates[fate])


@dataclass(frozen=True)
class Diagnosis:
    """What a run would learn from, and what is wrong with it.

    Attributes:
        train: the rows to train on.
        held_out: the rows to measure on.
        findings: what was found on either side, the worst first.
        lengths: tokens of the training rows, whole.
        packing_efficiency: tokens of samples as a share of what all packs can hold, if there are samples.
        context: the most targets of a sample.
        pack_tokens: tokens of a pack.
        too_long: what becomes of rows longer than the context.
        samples: a few training rows, decoded.
        rows_in_all: the rows that there are, where only some were looked at.
    """

    train: Side
    held_out: Side
    findings: tuple[Finding, ...]
    lengths: Histogram
    packing_efficiency: float | None
    context: int
    pack_tokens: int
    too_long: TooLong
    samples: tuple[Sample, ...]
    rows_in_all: int | None = None

    @property
    def worst(self) -> Severity | None:
        """The severity of the worst finding, if there is any."""
        return self.findings[0].severity if self.findings else None

    @property
    def looked_at(self) -> str:
        """How much of the data was looked at, as "2,000 of 1,204,113 rows"."""
        rows = self.train.rows + self.held_out.rows
        if self.rows_in_all in (None, rows):
            return "1 row" if rows == 1 else f"{rows:,} rows"
        return f"{rows:,} of {self.rows_in_all:,} rows"

    @property
    def verdict(self) -> str:
        """What will be learned, in a paragraph."""
        parts = [f"Looked at {self.looked_at}."] if " of " in self.looked_at else []
        parts.append(self._learning())
        if self.train.left_out:
            parts.append(f"Left out: {self.train.left_out}.")
        if self.held_out.rows:
            more = f", leaving out: {self.held_out.left_out}" if self.held_out.left_out else ""
            parts.append(f"{self.held_out.used:,} of {self.held_out.rows:,} held-out rows are measured on{more}.")
        doubts = [f"{found.title} ({found.count:,})" for found in self.findings if found.severity == "warning"]
        if doubts:
            parts.append(f"Look at: {', '.join(doubts)}.")
        elif self.train.used and self.worst != "error":
            parts.append("Nothing speaks against it.")
        return " ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        sides = {"train": self.train.as_dict(), "held_out": self.held_out.as_dict()}
        return {
            "verdict": self.verdict,
            "rows_in_all": self.rows_in_all,
            **sides,
            "context": self.context,
            "too_long": self.too_long,
            "pack_tokens": self.pack_tokens,
            "packing_efficiency": self.packing_efficiency,
            "lengths": asdict(self.lengths),
            "findings": [asdict(finding) for finding in self.findings],
            "decoded": [asdict(sample) for sample in self.samples],
        }

    def _learning(self) -> str:
        train = self.train
        if not train.used:
            return f"Nothing can be learned from {'these' if train.rows else 'no'} rows."
        rows = f"{train.used:,} of {train.rows:,} rows: {train.tokens:,} tokens"
        share = f"{train.learned:,} ({percent(train.share_learned)}) are learned"
        full = f"packs of {self.pack_tokens:,} that are {percent(self.packing_efficiency or 0.0)} full"
        return f"You will learn from {rows}, of which {share}, in {full}."


def by_severity(finding: Finding) -> tuple[int, int]:
    """The worst first, then what most rows have."""
    return SEVERITIES.index(finding.severity), -finding.count
