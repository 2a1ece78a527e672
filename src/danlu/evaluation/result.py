"""What an evaluation found."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from danlu.errors import RunError


@dataclass(frozen=True)
class Result:
    """What one task found.

    Attributes:
        task: "loss", or the extractor's name.
        metrics: the numbers it is about.
        counts: samples measured, and those left out or noteworthy, by reason.
        records: one a sample.
        adapter: the name of the adapter that the model had on; None where nobody chose one.
    """

    task: str
    metrics: Mapping[str, float]
    counts: Mapping[str, int]
    records: tuple[Mapping[str, Any], ...] = ()
    adapter: str | None = None

    @property
    def row(self) -> dict[str, Any]:
        """It without its records, as JSON."""
        worn = {} if self.adapter is None else {"adapter": self.adapter}
        return {"task": self.task, **worn, **self.metrics, **self.counts}


@dataclass(frozen=True)
class Evaluation:
    """What several tasks found on the same samples.

    Attributes:
        results: one a task, in the order asked for; of several adapters one after another.
    """

    results: tuple[Result, ...]

    def __getitem__(self, task: str) -> Result:
        return next(result for result in self.results if result.task == task)

    def save(self, path: str | Path) -> None:
        """Write all of it, records included, as JSON.

        Raises:
            RunError: when the file cannot be written.
        """
        path = Path(path).expanduser()
        content = [{**result.row, "records": list(result.records)} for result in self.results]
        try:
            text = json.dumps(_plain(content), indent=1, ensure_ascii=False, default=str)
            path.write_text(f"{text}\n", encoding="utf-8")
        except OSError as fault:
            raise RunError(f"the result cannot be written ({fault.strerror})", where=path, do="Name another.") from None


def _plain(value: Any) -> Any:
    """With null for numbers that JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
