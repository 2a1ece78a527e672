"""What a report shows of a run that learned from preferences: agreement, rewards, calibration."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from danlu.insight.charts import Chart, calibration_chart, curves_chart, metric_chart
from danlu.insight.page import Fact
from danlu.insight.record import Record, as_number
from danlu.units import percent

_KINDS = ("chosen", "rejected"), ("desirable", "undesirable")


def learned_preferences(record: Record) -> bool:
    """Whether the run compared answers."""
    return any(len(record.curve(name)) for name in ("margin", "held_out_margin"))


def preference_facts(record: Record) -> list[Fact]:
    """How often the model agrees with held-out pairs, by how much, and how far it is to be believed."""
    facts: list[tuple[str, str, Callable[[float], str], str]] = [
        ("held_out_accuracy", "Held-out agreement", percent, "pairs whose chosen answer is ranked first"),
        ("held_out_margin", "Held-out margin", lambda value: f"{value:.4g}", "reward of chosen less rejected"),
        ("held_out_calibration_error", "Calibration error", percent, "how far confidence is from agreement"),
    ]
    found = []
    for metric, name, form, unit in facts:
        curve = record.curve(metric)
        if len(curve):
            found.append(Fact(name, form(float(curve.values[-1])), unit))
    return found


def preference_charts(record: Record) -> list[Chart | None]:
    """Agreement, margins and rewards over the run, and the calibration at its end."""
    where = "held_out_" if len(record.curve("held_out_margin")) else ""
    of = "Held-out pairs." if where else "Pairs of each update."
    charts: list[Chart | None] = [
        metric_chart(
            "agreement",
            "Agreement",
            record.curve(f"{where}accuracy"),
            f"Share of pairs whose chosen answer has the larger reward. {of}",
            form=".3~p",
        ),
        metric_chart("margin", "Reward margin", record.curve(f"{where}margin"), f"Chosen less rejected. {of}"),
    ]
    for kinds in _KINDS:
        curves = {kind: record.curve(f"{where}reward_{kind}") for kind in kinds}
        charts.append(curves_chart("rewards", "Rewards", curves, f"Means of either kind. {of}"))
    charts.append(
        metric_chart("kl", "Estimated divergence", record.curve("kl"), "From the reference, by mismatched pairs.")
    )
    charts.append(_calibration(record))
    return charts


def _calibration(record: Record) -> Chart | None:
    """The last measurement's bins: how sure, how often right, and how many pairs."""
    rows = (row for row in reversed(record.rows) if "held_out_calibration_0_share" in row)
    row = next(rows, None)
    if row is None:
        return None
    bins = []
    for number in count():
        share, sure, right = (
            as_number(row.get(f"held_out_calibration_{number}_{of}")) for of in ("share", "confidence", "agreement")
        )
        if share is None or sure is None or right is None:
            break
        if share > 0:
            bins.append((sure / share, right / share, share))
    pairs = "Held-out pairs by how sure the model is of them; on the line it is right as often as it says."
    return calibration_chart("calibration", "Calibration", bins, pairs)
