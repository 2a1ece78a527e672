"""Episodes that a run recorded, read back for its report."""

from __future__ import annotations

from danlu.insight.page import Clip
from danlu.insight.record import Event, Record

_MOST_CLIPS = 6
_MOST_BYTES = 3 * 2**20
"""A report is to be sent by mail; what is larger stays in the run's directory."""


def clips_of(record: Record) -> tuple[Clip, ...]:
    """Some of the episodes, evenly over the run, the first and the last among them, of those that can be shown."""
    shown = {event.text("path"): event for event in record.events if event.kind == "frames"}
    found = [clip for clip in (_clip(record, event) for event in shown.values()) if clip]
    if len(found) <= _MOST_CLIPS:
        return tuple(found)
    return tuple(found[round(number * (len(found) - 1) / (_MOST_CLIPS - 1))] for number in range(_MOST_CLIPS))


def _clip(record: Record, event: Event) -> Clip | None:
    """A GIF inside the run's own directory."""
    home = record.directory.resolve()
    path = (home / event.text("path")).resolve()
    if not path.is_relative_to(home) or not path.is_file() or path.stat().st_size > _MOST_BYTES:
        return None
    gif = path.read_bytes()
    if not gif.startswith((b"GIF87a", b"GIF89a")):
        return None
    step, returned, length = (event.number(name) for name in ("step", "return", "length"))
    words = [
        "" if returned is None else f"return {returned:.4g}",
        "" if length is None else f"{length:,.0f} steps",
    ]
    about = ", ".join(word for word in words if word)
    return Clip(f"Step {step or 0:,.0f}{': ' if about else ''}{about}", gif)
