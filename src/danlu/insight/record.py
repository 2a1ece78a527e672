"""What a run wrote down, read back from its directory.

A run may have been killed in mid-line or be running still, so nothing but its metrics is required, and a line that
cannot be read is left out and counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from danlu.errors import RunError
from danlu.insight.curve import Curve

_NOTHING: Mapping[str, object] = {}


def as_number(value: object) -> float | None:
    """The value where it is a number, not-a-number included; None for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def as_mapping(value: object) -> Mapping[str, object]:
    """The value where it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else _NOTHING


@dataclass(frozen=True)
class Event:
    """One line of `events.jsonl`: when (unix seconds), what kind, and the rest as it stands there."""

    kind: str
    time: float | None
    fields: Mapping[str, object]

    def number(self, name: str) -> float | None:
        """A finite number among the fields."""
        value = as_number(self.fields.get(name))
        return value if value is not None and math.isfinite(value) else None

    def text(self, name: str) -> str:
        """A text among the fields; empty where it is absent."""
        value = self.fields.get(name)
        return "" if value is None else str(value)


@dataclass(frozen=True)
class Record:
    """A run's own account of itself.

    `rows` hold the metrics in the order of their steps, one row a step; `num_unreadable` counts the lines left out,
    without the half-written last line of a run that was killed or is being written.
    """

    directory: Path
    rows: tuple[Mapping[str, object], ...]
    events: tuple[Event, ...]
    recipe_text: str
    versions: Mapping[str, object]
    num_unreadable: int

    @cached_property
    def recipe(self) -> Mapping[str, object]:
        """The recipe as data; empty where its text is no YAML."""
        try:
            return as_mapping(yaml.safe_load(self.recipe_text))
        except yaml.YAMLError:
            return _NOTHING

    @property
    def name(self) -> str:
        """The run's name in the recipe, or else its directory's."""
        name = as_mapping(self.recipe.get("run")).get("name")
        return str(name) if name else self.directory.resolve().name

    def curve(self, name: str) -> Curve:
        """A metric over the steps that have it."""
        points = [(step, value) for step, value in self._points(name) if math.isfinite(value)]
        return Curve.of([step for step, _ in points], [value for _, value in points])

    def not_finite(self, name: str) -> list[int]:
        """The steps at which a metric was infinite or not a number."""
        return [step for step, value in self._points(name) if not math.isfinite(value)]

    def last(self, kind: str) -> Event | None:
        """The latest event of a kind."""
        return next((event for event in reversed(self.events) if event.kind == kind), None)

    def _points(self, name: str) -> Iterator[tuple[int, float]]:
        for row in self.rows:
            value = as_number(row.get(name))
            if value is not None:
                yield int(as_number(row["step"]) or 0), value


def read_record(run: Path) -> Record:
    """Reads a run directory.

    Raises:
        RunError: it is no run, or has no metrics to show.
    """
    if not any((run / name).is_file() for name in ("metrics.jsonl", "recipe.yaml", "events.jsonl")):
        raise RunError(
            "this is not a run: it holds no metrics.jsonl",
            where=run,
            do="Name a directory that `danlu train` wrote, such as runs/NAME-TIME.",
        )
    lines, bad_lines = _read_lines(run / "metrics.jsonl")
    rows = _by_step(lines)
    if not rows:
        do = "Train it for at least one step, then ask again."
        raise RunError("the run has no metrics yet", where=run / "metrics.jsonl", do=do)
    events, bad_events = _read_lines(run / "events.jsonl")
    return Record(
        directory=run,
        rows=rows,
        events=tuple(_event(line) for line in events),
        recipe_text=_read_text(run / "recipe.yaml"),
        versions=_read_versions(run / "versions.json"),
        num_unreadable=bad_lines + bad_events,
    )


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _read_lines(path: Path) -> tuple[list[Mapping[str, object]], int]:
    """The JSON objects of a file, and how many whole lines were not one."""
    *whole, last = _read_text(path).split("\n")
    values = [_parse(line) for line in whole if line.strip()]
    good = [as_mapping(value) for value in [*values, _parse(last)] if isinstance(value, dict)]
    return good, sum(not isinstance(value, dict) for value in values)


def _parse(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _by_step(lines: list[Mapping[str, object]]) -> tuple[Mapping[str, object], ...]:
    """One row a step: an evaluation's row joins its step's, and a repeated step replaces what it repeats."""
    rows: dict[int, dict[str, object]] = {}
    for line in lines:
        step = as_number(line.get("step"))
        if step is not None and math.isfinite(step):
            rows.setdefault(int(step), {}).update(line)
    return tuple(rows[step] for step in sorted(rows))


def _event(line: Mapping[str, object]) -> Event:
    fields = {name: value for name, value in line.items() if name not in {"kind", "time"}}
    time = as_number(line.get("time"))
    return Event(str(line.get("kind", "event")), time if time is not None and math.isfinite(time) else None, fields)


def _read_versions(path: Path) -> Mapping[str, object]:
    return as_mapping(_parse(_read_text(path)))
