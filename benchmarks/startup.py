"""How long `danlu --help` takes, from the shell."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks.common import MissingError, Spread, environment, interleave, yes
from benchmarks.results import Table
from benchmarks.settings import STARTUP_SECONDS, Options

REPEATS = 15
OURS = "danlu --help"
FOR_INFORMATION = (("trl", "--help"), ("transformers", "--help"), ("accelerate", "--help"))


def run(options: Options, scratch: Path) -> list[Table]:
    """Ours and the others' in turn, files in the page cache."""
    folder = Path(sys.executable).parent
    commands = {OURS: [str(folder / "danlu"), "--help"], "python -c pass": [sys.executable, "-c", "pass"]}
    commands |= {" ".join(c): [str(folder / c[0]), *c[1:]] for c in FOR_INFORMATION if (folder / c[0]).exists()}
    if not (folder / "danlu").exists():
        raise MissingError("the danlu command is not installed")
    env = environment(options, scratch)
    sides = {name: partial(_seconds, command, env) for name, command in commands.items()}
    interleave(sides, 1)  # byte code is written, files are read
    found = interleave(sides, options.rounds(REPEATS))
    rows = []
    for name, seconds in found.items():
        spread = Spread.of(seconds)
        target = (str(STARTUP_SECONDS), yes(STARTUP_SECONDS.met(spread.median))) if name == OURS else ("–", "–")
        rows.append([name, spread.show(3), *target])
    notes = [f"Wall time of the whole process, the median of {len(found[OURS])} in turn (least–most)."]
    return [Table("Start-up", ["command", "seconds", "target", "met"], rows, notes, found)]


def _seconds(command: list[str], env: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, env=env, capture_output=True)
    return time.perf_counter() - start
