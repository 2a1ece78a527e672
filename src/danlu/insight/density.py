"""What a report shows of a run that learned a distribution: how likely held-out rows are, and what comes out of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from danlu.insight.charts import Chart, loss_chart, metric_chart
from danlu.insight.curve import Curve
from danlu.insight.density_charts import cloud_chart, column_chart, map_chart, path_chart
from danlu.insight.density_pictures import map_of, numbers_of, where_is
from danlu.insight.fit import Fit, judge_fit
from danlu.insight.page import Fact
from danlu.insight.record import Event, Record, as_mapping, as_number
from danlu.units import count

_METRICS = {
    "nll": ("Negative log-likelihood", "Nats a row."),
    "bits_per_dim": ("Bits per dimension", "What a number of an image costs to be told."),
    "velocity": ("Velocity's error", "Squared, on the mean."),
    "noise": ("Noise's error", "Squared, on the mean."),
    "evaluations": ("Network evaluations", "Of a solving, on the mean."),
}
"""Metrics that are known, in the order they are drawn in."""
_ELSEWHERE = {
    *("step", "loss", "seconds", "samples", "samples_per_second", "packs", "epochs"),
    *("lr", "grad_norm", "memory_bytes"),
}
_MOST_OTHERS, _MOST_STAGES = 6, 30
_KINDS = {
    "exact": "exact",
    "bound": "a lower bound",
    "none": "cannot be told",
}


def learned_density(record: Record) -> bool:
    """Whether the run learned a distribution of rows."""
    return record.last("density") is not None or record.last("rows") is not None


def density_facts(record: Record) -> list[Fact]:
    """How likely held-out rows are, and how much it took."""
    shown, nll = record.last("density"), record.curve("held_out_nll")
    found = []
    if len(nll):
        found.append(Fact("Held-out log-likelihood", f"{-nll.values[-1]:.4g}", f"nats a row; {_likeliest(nll)}"))
    elif shown is not None and shown.number("log_likelihood") is not None:
        rows = f"nats a row, of {shown.number('log_likelihood_rows') or 0:,.0f} rows"
        kind = "; a lower bound" if shown.text("likelihood") == "bound" else ""
        found.append(Fact("Held-out log-likelihood", f"{shown.number('log_likelihood'):.4g}", rows + kind))
    bits = _bits(record)
    if bits is not None:
        found.append(Fact("Held-out bits per dimension", f"{bits:.4g}"))
    speed = record.curve("samples_per_second").values
    if len(speed):
        found.append(Fact("Rows a second", count(sorted(speed)[len(speed) // 2]), "median, while training"))
    return found


def _likeliest(nll: Curve) -> str:
    best = int(nll.values.argmin())
    if best == len(nll) - 1:
        return "its best"
    return f"best {-nll.values[best]:.4g} at step {int(nll.steps[best]):,}"


def _bits(record: Record) -> float | None:
    told = record.curve("held_out_bits_per_dim").values
    if len(told):
        return float(told[-1])
    shown = record.last("density")
    return None if shown is None else shown.number("bits_per_dim")


def judge_density(record: Record) -> Fit:
    """Whether it fits, by its losses, which may be anywhere: by what was gained since the first measurement."""
    return judge_fit(record.curve("loss"), record.curve("held_out_loss"), from_first=True)


def density_charts(record: Record) -> list[Chart | None]:
    """The course of learning: its loss first, then what else is measured."""
    exact = len(record.curve("held_out_nll")) or len(record.curve("nll"))
    unit = "Negative log-likelihood, nats a row." if exact else "What the method makes smaller."
    drawn = [loss_chart(record.curve("loss"), record.curve("held_out_loss"), unit), _likelihood_chart(record)]
    known = [name for name in _METRICS if name != "nll"]
    for name in [*known, *_others(record)]:
        title, caption = _METRICS.get(name, (name.replace("_", " ").capitalize(), ""))
        held_out = record.curve(f"held_out_{name}")
        curve, of = (held_out, "Held-out rows.") if len(held_out) else (record.curve(name), "")
        plain = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)
        words = f"{caption} {of}".strip()
        drawn.append(metric_chart(f"metric-{plain}", title, curve, words, form=".4~g", noisy=not len(held_out)))
    speeds = record.curve("samples_per_second")
    drawn.append(metric_chart("speed", "Rows a second", speeds, "Of training.", from_zero=True))
    return drawn


def _likelihood_chart(record: Record) -> Chart | None:
    """Held-out log-likelihood as it was measured apart from the loss, where the loss is none."""
    if len(record.curve("held_out_nll")):
        return None
    events = {int(e.number("step") or 0): e.number("log_likelihood") for e in record.events if e.kind == "density"}
    points = [(step, value) for step, value in sorted(events.items()) if value is not None]
    curve = Curve.of([step for step, _ in points], [value for _, value in points])
    words = "Nats a row, of some held-out rows."
    return metric_chart("likelihood", "Held-out log-likelihood", curve, words, form=".4~g", noisy=False)


def _others(record: Record) -> list[str]:
    """What a method records that this report has no words for."""
    seen: dict[str, None] = {}
    for row in record.rows:
        for name in row:
            plain = name.removeprefix("held_out_")
            if plain not in _ELSEWHERE and plain not in _METRICS:
                seen.setdefault(plain)
    return list(seen)[:_MOST_OTHERS]


def outcome_charts(record: Record) -> tuple[Chart, ...]:
    """What has become of it: the map, a cloud of samples, columns, and the way from noise."""
    event = record.last("density")
    if event is None:
        return ()
    cloud = as_mapping(event.fields.get("cloud"))
    data, samples = _points(cloud.get("data")), _points(cloud.get("samples"))
    plane = _columns(event, cloud)
    surface = as_mapping(event.fields.get("map"))
    drawn, values = list[Chart](), map_of(surface)
    if values is not None:
        drawn.append(map_chart(_ends(surface, "x"), _ends(surface, "y"), values, data, plane))
    if samples[0]:
        drawn.append(cloud_chart(data, samples, plane, _cloud_words(cloud)))
    way = as_mapping(event.fields.get("path"))
    clouds = way.get("clouds")
    stages = [_points(each) for each in clouds[:_MOST_STAGES]] if isinstance(clouds, list) else []
    if len(stages) > 1 and all(stage[0] for stage in stages):
        drawn.append(path_chart(stages, [int(stage) for stage in numbers_of(way.get("stages"))], where_is(event)))
    histograms = event.fields.get("histograms")
    for number, each in enumerate(histograms if isinstance(histograms, list) else []):
        told = as_mapping(each)
        edges, of_data, of_samples = (numbers_of(told.get(name)) for name in ("edges", "data", "samples"))
        if len(edges) == len(of_data) + 1 == len(of_samples) + 1 > 1:
            drawn.append(column_chart(f"column-{number}", str(told.get("name", "")), edges, of_data, of_samples))
    return tuple(drawn)


def _cloud_words(cloud: Mapping[str, object]) -> str:
    shares = numbers_of(cloud.get("shares"))
    if len(shares) != 2:
        return "Rows that were held out, and rows that the density makes."
    return (
        "Held-out rows and samples where the data are widest: along their first two principal directions, which hold "
        f"{100 * sum(shares):.0f} % of the variance of standardised columns."
    )


def _columns(event: Event, cloud: Mapping[str, object]) -> tuple[str, str]:
    """The axes' names."""
    if "shares" in cloud:
        return ("first direction", "second direction")
    names = event.fields.get("columns")
    told = [str(name) for name in names] if isinstance(names, list) else []
    return (told[0], told[1]) if len(told) == 2 else ("", "")


def outcome_facts(record: Record) -> tuple[Fact, ...]:
    """What can be done with it, and at what cost."""
    event, rows = record.last("density"), record.last("rows")
    if event is None:
        return ()
    shape = numbers_of(event.fields.get("shape"))
    facts = [Fact("A row", " × ".join(f"{n:.0f}" for n in shape), "numbers" if len(shape) == 1 else "of an image")]
    for name, words in (("classes", "classes"), ("features", "numbers")):
        if number := event.number(name):
            facts.append(Fact("Conditioned on", f"{number:,.0f}", words))
    if rows is not None:
        for name, words in (("rows", "Rows learned from"), ("held_out_rows", "Rows held out")):
            number = rows.number(name)
            facts += [] if number is None else [Fact(words, f"{number:,.0f}")]
    facts.append(Fact("Likelihood", _KINDS.get(event.text("likelihood"), "not known")))
    if (scored := event.number("log_likelihood")) is not None:
        note = f"nats a row, of {event.number('log_likelihood_rows') or 0:,.0f} held-out rows"
        facts.append(Fact("Log-likelihood", f"{scored:.5g}", note))
    error = event.number("inversion_error")
    if error is not None:
        facts.append(Fact("Inversion error", f"{error:.2g}", "largest, of rows as the network sees them"))
    asked = as_mapping(event.fields.get("evaluations"))
    for name, words in (("decode", "Noise to a row"), ("encode", "A row to noise")):
        number = as_number(asked.get(name))
        if number is not None and math.isfinite(number):
            facts.append(Fact(words, f"{number:,.0f}", "network evaluations" if number != 1 else "pass"))
    return tuple(facts)


def outcome_faults(record: Record) -> list[str]:
    """What could not be shown, and why."""
    event = record.last("density")
    faults = event.fields.get("faults") if event is not None else None
    told = faults if isinstance(faults, list) else []
    return [f"Something of the density could not be shown: {fault}" for fault in told]


def _points(values: object) -> tuple[list[float], list[float]]:
    """Two lists of one length; empty where it is anything else."""
    pair = [numbers_of(each) for each in values] if isinstance(values, list) else []
    return (pair[0], pair[1]) if len(pair) == 2 and len(pair[0]) == len(pair[1]) else ([], [])


def _ends(surface: Mapping[str, object], name: str) -> tuple[float, float]:
    ends = numbers_of(surface.get(name))
    return (ends[0], ends[1]) if len(ends) == 2 else (0.0, 1.0)
