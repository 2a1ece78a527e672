from __future__ import annotations

import pytest
from pydantic import ValidationError

from danlu.config import Config
from danlu.durations import Duration
from danlu.yaml_text import parse_value


class Timed(Config):
    """A config with a time."""

    max_time: Duration | None = None


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("90s", 90),
        ("30m", 1800),
        ("30 min", 1800),
        ("2h", 7200),
        ("1.5h", 5400),
        ("1d", 86400),
        ("1d 2h 3m 4s", 93784),
        ("2H", 7200),
        ("1:30:00", 5400),
        ("01:30:00", 5400),
        ("48:00:00", 172800),
        ("1:30", 90),
        ("90", 90),
        ("0.5", 0.5),
        ("null", None),
    ],
)
def test_a_time_is_read_as_it_is_written_in_a_recipe(written: str, expected: float | None) -> None:
    assert Timed(max_time=parse_value(written)).max_time == expected  # YAML takes some of these for numbers
    if expected is not None:
        assert Timed(max_time=written).max_time == expected


@pytest.mark.parametrize(
    "written", ["", "soon", "2x", "h", "1h and more", "1:75:00", "1:30:00:00", "-5s", "0s", 0, -1.0]
)
def test_what_is_no_time_is_refused(written: str | float) -> None:
    with pytest.raises(ValidationError, match=r"is no time: write it as|greater than 0"):
        Timed(max_time=written)
