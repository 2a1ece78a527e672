"""What happened during a run, told in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from itertools import groupby, takewhile

from danlu.insight.page import Moment
from danlu.insight.record import Event
from danlu.units import count, duration

_TOLD_ELSEWHERE = {"sample", "warning", "values", "frames"}
_REASONS = {"max_time": "run.max_time was over"}


def moments_of(events: Sequence[Event]) -> tuple[Moment, ...]:
    """The events as a timeline, measured from the first; neighbouring checkpoints, or skips, become one line."""
    elsewhere = {id(note) for note in _first_notes(events)}
    told = [event for event in events if event.kind not in _TOLD_ELSEWHERE and id(event) not in elsewhere]
    zero = next((event.time for event in told if event.time is not None), None)
    moments: list[Moment] = []
    for kind, group in groupby(told, key=lambda event: event.kind):
        same = list(group)
        together = _TOGETHER.get(kind)
        shown = [together(same)] if together else [_told(event) for event in same]
        # A group that became one line happened when it ended.
        moments += [Moment(_when(event, zero), *words) for event, words in zip(same[-len(shown) :], shown, strict=True)]
    return tuple(moments)


def warnings_of(events: Sequence[Event]) -> tuple[str, ...]:
    """Each warning once, in the order of its first appearance, with how often it came; and what was not learned from.

    An update is passed over by a skip, and by a rollback together with those since the checkpoint.
    """
    passed = [event for event in events if event.kind in {"skip", "rollback"}]
    undone = int(sum(event.number("undone") or 0 for event in passed))
    if not passed:
        return _messages(events, "warning")
    several = f"{len(passed):,} updates were" if len(passed) > 1 else "One update was"
    more = f", and {undone:,} before {'them' if len(passed) > 1 else 'it'} undone" if undone else ""
    return (*_messages(events, "warning"), f"{several} passed over{more}; the timeline says why.")


def notes_of(events: Sequence[Event]) -> tuple[str, ...]:
    """Notes on the run as a whole; those on what changed when it was taken up again belong to its timeline."""
    return _messages(_first_notes(events), "note")


def ranks_of(events: Sequence[Event]) -> tuple[int, str]:
    """How many processes there were when the run was last begun or taken up, and how it lay over them."""
    for event in reversed(events):
        if event.kind == "ranks":
            return int(event.number("size") or 1), event.text("parallel")
        if event.kind in {"start", "resume"}:
            break
    return 1, "none"


def _first_notes(events: Sequence[Event]) -> list[Event]:
    first = takewhile(lambda event: event.kind != "resume", events)
    return [event for event in first if event.kind == "note"]


def _messages(events: Sequence[Event], kind: str) -> tuple[str, ...]:
    times = Counter(event.text("message") for event in events if event.kind == kind)
    return tuple(f"{message} ({num} times)" if num > 1 else message for message, num in times.items())


def status_of(events: Sequence[Event]) -> str:
    """How the run stands: finished and why, or without an end."""
    dated = [event.time for event in events if event.time is not None]
    started = f"Started {_date(dated[0])}" if dated else "Start not recorded"
    last = next((event for event in reversed(events) if event.kind in {"start", "resume", "end"}), None)
    if last is None or last.kind != "end":
        return f"{started}. No end is recorded: it is running still, or was stopped."
    step, reason = last.number("step"), _reason(last)
    at = f" at step {step:,.0f}" if step is not None else ""
    return f"{started}. Ended{at}{': ' + reason if reason else ''}."


def _told(event: Event) -> tuple[str, str]:  # noqa: PLR0911 - one for each kind
    """What happened and its particulars."""
    step = event.number("step")
    at = f"step {step:,.0f}" if step is not None else ""
    match event.kind:
        case "start":
            steps = event.number("steps")
            return "Started", f"{steps:,.0f} steps" if steps else ""
        case "note":
            return "Note", event.text("message")
        case "ranks":
            return f"{event.number('size') or 0:.0f} processes", event.text("parallel")
        case "rollback":
            undone = event.number("undone") or 0
            return f"Rolled back {undone:,.0f} update{'s' if undone != 1 else ''}", event.text("message")
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
            words = [
                event.text("architecture") or event.text("agent"),
                f"{count(size)} parameters" if size is not None else "",
            ]
            return "Model built", ", ".join(word for word in words if word)
        case "world":
            num = event.number("num_envs") or 1
            if not event.text("env"):
                return "No environment", "what is learned from is drawn by chance"
            several = f", {num:,.0f} side by side" if num > 1 else ""
            most = event.number("env_steps")
            return "Environment made", event.text("env") + several + (f", for {most:,.0f} steps" if most else "")
        case "end":
            seconds = event.number("seconds")
            words = [_reason(event), at, f"after {duration(seconds)}" if seconds is not None else ""]
            return "Ended", ", ".join(word for word in words if word)
        case _:
            return event.kind.capitalize(), _others(event)


def _checkpoints(events: list[Event]) -> tuple[str, str]:
    first, last = events[0], events[-1]
    step, path = last.number("step"), last.text("path")
    at = f"step {step:,.0f}" if step is not None else ""
    held = max((event.number("staged_seconds") or 0 for event in events), default=0)
    if len(events) == 1:
        words = [at, path, f"held the run up {duration(held)}" if held else ""]
        return "Checkpoint", ", ".join(word for word in words if word)
    begin = first.number("step")
    span = f"step {begin:,.0f} to {at}" if begin is not None and at else ""
    words = [span, f"last {path}" if path else "", f"each held the run up {duration(held)} at most" if held else ""]
    return f"{len(events)} checkpoints", ", ".join(word for word in words if word)


def _skips(events: list[Event]) -> tuple[str, str]:
    if len(events) == 1:
        return "Update skipped", events[0].text("message")
    return f"{len(events)} updates skipped", f"the first: {events[0].text('message')}"


_TOGETHER = {"checkpoint": _checkpoints, "skip": _skips}
"""What is told of neighbours of a kind at once."""


def _reason(end: Event) -> str:
    return _REASONS.get(end.text("reason"), end.text("reason"))


def _others(event: Event) -> str:
    """The fields of a kind that this report has no words for."""
    plain = {name: value for name, value in event.fields.items() if isinstance(value, str | int | float)}
    return ", ".join(f"{name} {value}" for name, value in plain.items())


def _when(event: Event, zero: float | None) -> str:
    if event.time is None or zero is None:
        return ""
    return f"+ {duration(round(event.time - zero, 1))}" if event.time > zero else _date(event.time)


def _date(time: float) -> str:
    return datetime.fromtimestamp(time).astimezone().strftime("%Y-%m-%d %H:%M")
