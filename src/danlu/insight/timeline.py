"""What happened during a run, told in order."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import groupby

from danlu.insight.page import Moment
from danlu.insight.record import Event
from danlu.units import count, duration

_TOLD_ELSEWHERE = {"sample", "warning", "note"}


def moments_of(events: Sequence[Event]) -> tuple[Moment, ...]:
    """The events as a timeline, measured from the first; neighbouring checkpoints become one line."""
    told = [event for event in events if event.kind not in _TOLD_ELSEWHERE]
    zero = next((event.time for event in told if event.time is not None), None)
    moments: list[Moment] = []
    for kind, group in groupby(told, key=lambda event: event.kind):
        same = list(group)
        shown = [_checkpoints(same)] if kind == "checkpoint" else [_told(event) for event in same]
        # A group that became one line happened when it ended.
        moments += [Moment(_when(event, zero), *words) for event, words in zip(same[-len(shown) :], shown, strict=True)]
    return tuple(moments)


def warnings_of(events: Sequence[Event]) -> tuple[str, ...]:
    """Each warning once, in the order of its first appearance, with how often it came."""
    times: dict[str, int] = {}
    for event in events:
        if event.kind in {"warning", "note"}:
            times[event.text("message")] = times.get(event.text("message"), 0) + 1
    return tuple(f"{message} ({num} times)" if num > 1 else message for message, num in times.items())


def status_of(events: Sequence[Event]) -> str:
    """How the run stands: finished and why, or without an end."""
    dated = [event.time for event in events if event.time is not None]
    started = f"Started {_date(dated[0])}" if dated else "Start not recorded"
    last = next((event for event in reversed(events) if event.kind in {"start", "resume", "end"}), None)
    if last is None or last.kind != "end":
        return f"{started}. No end is recorded: it is running still, or was stopped."
    step, reason = last.number("step"), last.text("reason")
    at = f" at step {step:,.0f}" if step is not None else ""
    return f"{started}. Ended{at}{': ' + reason if reason else ''}."


def _told(event: Event) -> tuple[str, str]:  # noqa: PLR0911 - one for each kind
    """What happened and its particulars."""
    step = event.number("step")
    at = f"step {step:,.0f}" if step is not None else ""
    match event.kind:
        case "start":
            return "Started", _others(event)
        case "doctor":
            return "Data examined", f"{event.text('message')} (data.html)"
        case "resume":
            return "Resumed", f"from {at}" if at else ""
        case "data":
            parts = (
                (count(value), name) for name in ("documents", "tokens") if (value := event.number(name)) is not None
            )
            return "Data ready", ", ".join(f"{value} {name}" for value, name in parts)
        case "model":
            size = event.number("parameters")
            words = [event.text("architecture"), f"{count(size)} parameters" if size is not None else ""]
            return "Model built", ", ".join(word for word in words if word)
        case "end":
            seconds = event.number("seconds")
            words = [event.text("reason"), at, f"after {duration(seconds)}" if seconds is not None else ""]
            return "Ended", ", ".join(word for word in words if word)
        case _:
            return event.kind.capitalize(), _others(event)


def _checkpoints(events: list[Event]) -> tuple[str, str]:
    first, last = events[0], events[-1]
    step, path = last.number("step"), last.text("path")
    at = f"step {step:,.0f}" if step is not None else ""
    if len(events) == 1:
        return "Checkpoint", ", ".join(word for word in (at, path) if word)
    begin = first.number("step")
    span = f"step {begin:,.0f} to {at}" if begin is not None and at else ""
    return f"{len(events)} checkpoints", ", ".join(word for word in (span, f"last {path}" if path else "") if word)


def _others(event: Event) -> str:
    """The fields of a kind that this report has no words for."""
    plain = {name: value for name, value in event.fields.items() if isinstance(value, str | int | float)}
    return ", ".join(f"{name} {value}" for name, value in plain.items())


def _when(event: Event, zero: float | None) -> str:
    if event.time is None or zero is None:
        return ""
    return f"+ {duration(max(event.time - zero, 0.0))}" if event.time > zero else _date(event.time)


def _date(time: float) -> str:
    return datetime.fromtimestamp(time).astimezone().strftime("%Y-%m-%d %H:%M")
