"""What benchmarks share: processes of their own, interleaved repeats, medians of paired ratios."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.settings import Options

R = TypeVar("R")
Facts = dict[str, Any]
"""What a child process reports: JSON."""

PATIENCE = 3600.0
"""Seconds a child may take."""


class MissingError(Exception):
    """Something a benchmark needs is not here."""


class TooSlowError(Exception):
    """A child was ended because its time was over."""


def environment(options: Options, scratch: Path, **more: str) -> dict[str, str]:
    """The environment of a child: threads, and every cache in a folder that goes away."""
    threads = str(options.threads)
    fixed = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "DANLU_CACHE": str(scratch / "tokens"),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
        "HF_HOME": str(scratch / "hub"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if options.device == "cpu" else {}
    return {**os.environ, **fixed, **hidden, **more}


def child(
    function: Callable[..., Facts], /, *, env: Mapping[str, str], patience: float = PATIENCE, **arguments: Any
) -> Facts:
    """Call a function of a benchmark in a process of its own; its arguments and its answer are JSON.

    Raises:
        TooSlowError: when it was not done in time.
        RuntimeError: when it failed, with the end of what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer, log = Path(folder, "answer.json"), Path(folder, "log")
        command = [sys.executable, "-m", "benchmarks.child", f"{function.__module__}:{function.__name__}", str(answer)]
        with log.open("w") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env),
                start_new_session=True,
            )
            try:
                process.communicate(json.dumps(arguments).encode(), timeout=patience)
            except subprocess.TimeoutExpired:
                raise TooSlowError(f"no result within {patience / 60:.0f} minutes") from None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # with the compiler processes it started
                    process.wait()
        if process.returncode:
            raise RuntimeError(f"{function.__name__} failed:\n" + "".join(log.read_text().splitlines(True)[-30:]))
        facts: Facts = json.loads(answer.read_text())
        return facts


def interleave(sides: Mapping[str, Callable[[], R]], repeats: int, *, quiet: bool = False) -> dict[str, list[R]]:
    """Measure A B A B, so that what the machine does besides falls on all sides alike."""
    found: dict[str, list[R]] = {name: [] for name in sides}
    for turn in range(repeats):
        for name, measure in sides.items():
            if not quiet:
                say(f"  {name}, {turn + 1} of {repeats}")
            found[name].append(measure())
    return found


def say(text: str) -> None:
    """Progress, beside the results."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Spread:
    """The median of some figures, and how far they went."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        """Of some figures."""
        return cls(statistics.median(figures), min(figures), max(figures))

    @classmethod
    def ratio(cls, over: Sequence[float], under: Sequence[float]) -> Spread:
        """Of the ratios repeat by repeat, which share what the machine did besides."""
        return cls.of([a / b for a, b in zip(over, under, strict=True)])

    def show(self, digits: int = 2) -> str:
        """The median, and the range where there is one."""
        text = f"{self.median:,.{digits}f}"
        spread = f" ({self.low:,.{digits}f}–{self.high:,.{digits}f})"
        return text if self.low == self.high else text + spread


def mebibytes(count: float) -> str:
    """A size, in MiB."""
    return f"{count / 2**20:,.0f}"


def yes(met: bool) -> str:
    """Whether a target is met, for a cell."""
    return "yes" if met else "**no**"
