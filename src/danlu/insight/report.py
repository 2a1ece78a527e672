"""`danlu report RUN`: how a run went, on one page that opens anywhere.

The page needs no network: its charts, its script and its style are all in the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from danlu.insight.acting import acted, acting_charts, acting_facts, judge_acting, world_facts
from danlu.insight.charts import Chart, histogram_chart, loss_chart, metric_chart
from danlu.insight.clips import clips_of
from danlu.insight.curve import Curve
from danlu.insight.density import (
    density_charts,
    density_facts,
    judge_density,
    learned_density,
    outcome_charts,
    outcome_facts,
    outcome_faults,
)
from danlu.insight.density_pictures import outcome_drawings
from danlu.insight.fit import Fit, judge_fit
from danlu.insight.page import Fact, Page, Sample, render
from danlu.insight.preferences import learned_preferences, preference_charts, preference_facts
from danlu.insight.record import Event, Record, as_mapping, as_number, read_record
from danlu.insight.seeds import returns_over_seeds
from danlu.insight.timeline import moments_of, notes_of, ranks_of, status_of, warnings_of
from danlu.insight.value_map import value_drawings
from danlu.units import count, duration, memory, percent

_DATA_FACTS = (
    ("Documents", "documents", count),
    ("Samples", "samples", count),
    ("Tokens", "tokens", count),
    ("Held-out samples", "held_out_samples", count),
    ("Vocabulary", "vocab_size", count),
    ("Files", "files", count),
    ("Size", "bytes", memory),
    ("Cut at the context", "cut", count),
    ("Left out: empty", "empty", count),
    ("Left out: too short", "too_short", count),
    ("Left out: nothing learned", "unlearned", count),
    ("Left out: could not be read", "faults", count),
    ("Truncated at the context", "truncated", count),
    ("Targets that are learned", "learned", count),
)


def write_report(run: Path, others: Sequence[Path] = ()) -> Path:
    """Writes `report.html` into a run's directory and returns its path.

    The run may be going on still, or have been killed.

    Args:
        run: its directory.
        others: runs that acted as this one did, with other seeds, whose returns are drawn beside its own.

    Raises:
        RunError: a directory is no run, or has no metrics to show, or runs cannot be compared.
    """
    from plotly.offline import get_plotlyjs

    record = read_record(run)
    together = returns_over_seeds([record, *(read_record(other) for other in others)]) if others else None
    html = render(_page(record, together), get_plotlyjs())
    path = run / "report.html"
    # Replaced in one go: whoever has the page open reloads the old report or the new one, never half of it.
    partial = run / "report.html.partial"
    partial.write_text(html, encoding="utf-8")
    os.replace(partial, path)
    return path


def _page(record: Record, together: Chart | None) -> Page:
    data = record.last("data")
    return Page(
        title=record.name,
        status=status_of(record.events),
        facts=_key_facts(record),
        fit=_fit(record),
        charts=(*([together] if together else []), *_training_charts(record)),
        warnings=(*warnings_of(record.events), *_doubts(record)),
        notes=notes_of(record.events),
        samples=_samples(record),
        data=_data_facts(data) if data else (),
        data_charts=_data_charts(data) if data else (),
        moments=moments_of(record.events),
        recipe=record.recipe_text,
        machine=_machine(record),
        drawings=value_drawings(record),
        clips=clips_of(record),
        world=world_facts(record),
        outcome=outcome_facts(record),
        outcome_charts=outcome_charts(record),
        outcome_drawings=outcome_drawings(record),
    )


def _fit(record: Record) -> Fit:
    if acted(record):
        return judge_acting(record)
    if learned_density(record):
        return judge_density(record)
    data = record.last("data")
    vocab_size = data.number("vocab_size") if data else None
    known = None if vocab_size is None or learned_preferences(record) else int(vocab_size)
    return judge_fit(record.curve("loss"), record.curve("held_out_loss"), vocab_size=known)


def _key_facts(record: Record) -> tuple[Fact, ...]:
    unit = "" if learned_preferences(record) or learned_density(record) else "nats a token"
    facts: list[Fact | None] = [
        *preference_facts(record),
        *(acting_facts(record) if acted(record) else ()),
        *(density_facts(record) if learned_density(record) else ()),
        _final(record, "held_out_bits_per_byte", "Held-out bits per byte"),
        *([] if learned_density(record) else [_final(record, "held_out_loss", "Held-out loss", unit)]),
        _final(record, "held_out_perplexity", "Held-out perplexity"),
    ]
    if not any(facts):
        facts.append(_final(record, "loss", "Training loss", f"{unit}, last step" if unit else "last step"))
    total, tokens = record.curve("total_tokens").values, record.curve("tokens").values
    if len(total) or len(tokens):
        facts.append(Fact("Tokens trained", count(float(total[-1] if len(total) else tokens.sum()))))
    seconds = record.curve("seconds").values
    if len(seconds):
        facts.append(Fact("Time in steps", duration(float(seconds.sum())), f"{len(seconds):,} steps"))
    facts.append(_median(record, "tokens_per_second", "Tokens a second", count))
    facts.append(_median(record, "mfu", "MFU", percent))
    model = record.last("model")
    parameters = model.number("parameters") if model else None
    if model and parameters is not None:
        trainable = model.number("trainable")
        part = "" if trainable in (None, parameters) else f"{count(trainable)} trained ({trainable / parameters:.2%})"
        facts.append(Fact("Parameters", count(parameters), part if trainable else "moved by the method"))
    return tuple(fact for fact in facts if fact)


def _final(record: Record, metric: str, name: str, unit: str = "") -> Fact | None:
    """The last value of a metric, and the lowest where that was clearly another."""
    curve = record.curve(metric)
    if not len(curve):
        return None
    last, lowest = float(curve.values[-1]), float(curve.values.min())
    best = f"lowest {lowest:.4g} at step {int(curve.steps[curve.values.argmin()]):,}"
    noted = metric.startswith("held_out") and f"{lowest:.4g}" != f"{last:.4g}"
    return Fact(name, f"{last:.4g}", best if noted else unit)


def _median(record: Record, metric: str, name: str, form: Callable[[float], str]) -> Fact | None:
    values = record.curve(metric).values
    return Fact(name, form(float(np.median(values))), "median") if len(values) else None


def _training_charts(record: Record) -> tuple[Chart, ...]:
    used = record.curve("memory_bytes")
    unit, size = next(
        ((unit, size) for unit, size in (("GiB", 2**30), ("MiB", 2**20)) if _peak(used) >= size), ("B", 1)
    )
    charts = [
        *_learning_charts(record),
        *(preference_charts(record) if learned_preferences(record) else ()),
        metric_chart("throughput", "Tokens a second", record.curve("tokens_per_second"), "", from_zero=True),
        metric_chart(
            "mfu",
            "Model FLOPs utilisation",
            record.curve("mfu"),
            "Arithmetic the model needs, as a share of the device's peak.",
            form=".3~p",
            from_zero=True,
        ),
        *_descent_charts(record),
        metric_chart(
            "memory",
            "Memory",
            Curve(used.steps, used.values / size),
            _memory_words(record, used),
            form=".3~f",
            unit=f" {unit}",
            from_zero=True,
            noisy=False,
        ),
        metric_chart(
            "packing",
            "Packing efficiency",
            record.curve("packing_efficiency"),
            "Tokens of samples as a share of the tokens a pack could hold.",
            form=".4~p",
        ),
    ]
    return tuple(chart for chart in charts if chart)


def _learning_charts(record: Record) -> list[Chart | None]:
    """The course of what is learned, by what that is."""
    if acted(record):
        return acting_charts(record)
    if learned_density(record):
        return density_charts(record)
    return [loss_chart(record.curve("loss"), record.curve("held_out_loss"), *_loss_words(record))]


def _descent_charts(record: Record) -> list[Chart | None]:
    norm = record.curve("grad_norm")
    return [
        metric_chart("lr", "Learning rate", record.curve("lr"), "", form=".3~g", from_zero=True, noisy=False),
        metric_chart("grad-norm", "Gradient norm", norm, "Before clipping.") if norm.values.any() else None,
    ]


def _loss_words(record: Record) -> list[str]:
    return ["What the method makes of its pairs."] if learned_preferences(record) else []


def _peak(curve: Curve) -> float:
    return float(curve.values.max()) if len(curve) else 0.0


def _memory_words(record: Record, used: Curve) -> str:
    whole = as_number(as_mapping(record.versions.get("device")).get("memory_bytes"))
    of = f" of {memory(whole)}, {percent(_peak(used) / whole)}" if whole else ""
    where = ", on the first process" if ranks_of(record.events)[0] > 1 else ""
    return f"Peak {memory(_peak(used))}{of}{where}."


def _doubts(record: Record) -> list[str]:
    """What the report itself has to say about the record."""
    doubts = []
    for metric in ("loss", "grad_norm", "held_out_loss"):
        steps = record.not_finite(metric)
        if steps:
            more = f" and {len(steps) - 1:,} more" if len(steps) > 1 else ""
            doubts.append(f"{metric} was not a finite number at step {steps[0]:,}{more}; its chart leaves that out.")
    if record.num_unreadable:
        doubts.append(f"{record.num_unreadable:,} lines of metrics.jsonl and events.jsonl could not be read.")
    return [*doubts, *outcome_faults(record)]


def _samples(record: Record) -> tuple[Sample, ...]:
    events = (event for event in record.events if event.kind == "sample")
    return tuple(Sample(int(event.number("step") or 0), event.text("prompt"), event.text("text")) for event in events)


def _data_facts(data: Event) -> tuple[Fact, ...]:
    values = [(name, form, data.number(key)) for name, key, form in _DATA_FACTS]
    return tuple(Fact(name, form(value)) for name, form, value in values if value is not None)


def _data_charts(data: Event) -> tuple[Chart, ...]:
    histogram = as_mapping(data.fields.get("length_histogram"))
    edges, counts = (_numbers(histogram.get(name)) for name in ("edges", "counts"))
    chart = histogram_chart("lengths", "Length of samples", edges, counts, "How many samples have how many tokens.")
    return (chart,) if chart else ()


def _numbers(values: object) -> list[float]:
    numbers = [as_number(value) for value in values] if isinstance(values, list) else []
    return [number for number in numbers if number is not None]


def _machine(record: Record) -> tuple[Fact, ...]:
    """Versions as they stand, the device's fields among them, and how many processes there were."""
    versions = record.versions
    device = as_mapping(versions.get("device"))
    facts = [Fact("Device", str(device["name"]), str(device.get("kind", "")))] if device.get("name") else []
    for name, label, form in (
        ("peak_flops", "Peak", lambda value: f"{count(value)}FLOP/s"),
        ("memory_bytes", "Device memory", memory),
        ("threads", "Threads", count),
    ):
        value = as_number(device.get(name))
        if value is not None:
            facts.append(Fact(label, form(value)))
    size, parallel = ranks_of(record.events)
    if size > 1:
        facts.append(Fact("Processes", count(size), parallel))
    others = ((name, value) for name, value in versions.items() if name != "device" and value is not None)
    names = {"danlu": "Danlu", "python": "Python", "torch": "PyTorch"}
    return (*facts, *(Fact(names.get(name, name.capitalize()), str(value)) for name, value in others))
