"""Times as people write them."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_PARTS = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d)")
_CLOCK = re.compile(r"(?:(\d+):(?=[0-5]?\d:))?(\d+):([0-5]?\d)")


def seconds(text: str) -> float:
    """What a written time is in seconds: a number, numbers with units (s, m or min, h, d), or hours:minutes:seconds.

    Example:
        >>> seconds("90s"), seconds("2h"), seconds("1d 12h"), seconds("1:30:00"), seconds("600")
        (90.0, 7200.0, 129600.0, 5400.0, 600.0)

    Raises:
        ValueError: when it is none of these.
    """
    plain = text.strip().lower()
    if found := _CLOCK.fullmatch(plain):
        hours, minutes, rest = (int(part or 0) for part in found.groups())
        return 3600.0 * hours + 60.0 * minutes + rest
    if re.fullmatch(r"\d+(\.\d+)?", plain):
        return float(plain)
    parts = _PARTS.findall(plain)
    if not parts or _PARTS.sub("", plain).strip():
        raise ValueError(f"'{text}' is no time: write it as 90s, 30m, 2h, 1d or 1:30:00")
    return float(sum(float(number) * _UNITS[unit[0]] for number, unit in parts))


def _read(value: Any) -> Any:
    return seconds(value) if isinstance(value, str) else value


Duration = Annotated[float, BeforeValidator(_read), Field(gt=0)]
"""Seconds, at least some, in a recipe also as "90s", "30m", "2h", "1d" or "1:30:00" (hours, minutes, seconds)."""
