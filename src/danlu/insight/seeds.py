"""Several runs that differ in their seeds, read together: one run of reinforcement learning says little.

References:
    Henderson et al., 2018, "Deep reinforcement learning that matters", https://arxiv.org/abs/1709.06560
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from danlu.errors import RunError
from danlu.insight.acting import acted, env_steps
from danlu.insight.acting_charts import Band, seeds_chart
from danlu.insight.charts import Chart
from danlu.insight.curve import Curve
from danlu.insight.record import Record, as_mapping

_PLACES = 200
_WINDOW = 20
"""Training returns are smoothed over a twentieth of a run before they are compared."""


def returns_over_seeds(records: Sequence[Record]) -> Chart:
    """Returns of several runs against steps of the environment: their mean, and from the least to the largest.

    Runs of one method are drawn as one; held-out returns are drawn where all have them, else those of training. All are
    drawn as far as the shortest goes.

    Raises:
        RunError: where one did not act, or acted elsewhere, or has no returns to show.
    """
    where = {_world(record) for record in records}
    if len(where) > 1:
        raise RunError(
            f"the runs acted in several environments: {', '.join(sorted(where))}", do="Compare those of one."
        )
    name = "held_out_return" if all(len(record.curve("held_out_return")) > 1 for record in records) else "return"
    curves = [(_method(record), _against_env_steps(record, name)) for record in records]
    grouped: dict[str, list[Curve]] = {}
    for method, curve in curves:
        grouped.setdefault(method, []).append(curve)
    begin = max(int(curve.steps[0]) for _, curve in curves)
    end = min(int(curve.steps[-1]) for _, curve in curves)
    if begin >= end:
        raise RunError("the runs have no steps of the environment in common", do="Give runs that are as long.")
    at = np.linspace(begin, end, _PLACES)
    bands = {
        method: Band(at, np.stack([np.interp(at, curve.steps, curve.values) for curve in each]))
        for method, each in sorted(grouped.items())
    }
    title = "Held-out return of all runs" if name.startswith("held") else "Training return of all runs"
    return seeds_chart(bands, title, _caption(bands))


def _caption(bands: dict[str, Band]) -> str:
    words = ["The mean of runs that differ in their seeds; the shade reaches from the least to the largest."]
    for method, band in bands.items():
        last = band.each[:, -1]
        words.append(
            f"{method}: {len(last)} run{'s' * (len(last) > 1)}, at the end {last.mean():.4g}"
            + (f" ({last.min():.4g} to {last.max():.4g})." if len(last) > 1 else ".")
        )
    return " ".join(words)


def _against_env_steps(record: Record, name: str) -> Curve:
    """A metric by how many steps of the environment there had been."""
    curve, steps = record.curve(name), env_steps(record)
    if len(curve) < 2:
        raise RunError("the run has no returns to compare yet", where=record.directory, do="Train it for longer.")
    before = np.searchsorted(steps.steps, curve.steps, side="right")
    taken = np.concatenate([[0.0], steps.values])[before]
    smooth = curve if name.startswith("held") else curve.smoothed(max(1, len(curve) // _WINDOW))
    return Curve.of(taken.astype(np.int64), smooth.values)


def _world(record: Record) -> str:
    if not acted(record):
        raise RunError("the run did not learn from acting", where=record.directory, do="Compare runs that did.")
    world = record.last("world")
    return world.text("env") if world else ""


def _method(record: Record) -> str:
    method = record.recipe.get("method")
    return str(as_mapping(method).get("name") or (method if isinstance(method, str) else "run"))
