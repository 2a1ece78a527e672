"""Real tokens a second and peak memory, against `transformers.Trainer`, where lengths differ much."""

from __future__ import annotations

from pathlib import Path

from benchmarks.results import Table
from benchmarks.settings import Options
from benchmarks.throughput import compare


def run(options: Options, scratch: Path) -> list[Table]:
    """Documents of log-normal lengths in every precision."""
    return compare("log-normal", options, scratch)
