"""Measure Danlu beside its peers: `python -m benchmarks [NAME ...]`."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks import results
from benchmarks.common import Facts, MissingError, child, environment, say
from benchmarks.settings import Options

NAMES = (
    *("startup", "dropout", "data", "first_step", "checkpoint", "guards", "adapters", "mfu", "ring", "parallel"),
    *("density", "acting", "likelihoods", "returns", "sft", "lora", "dpo", "throughput", "lengths", "tuning"),
)
"""The quickest first."""


def main() -> int:
    """Run, print, save; the status is 1 when a comparison is void or a benchmark failed."""
    names, options = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that children and files go, too
    status = 0
    tables: dict[str, results.Table] = {}
    with tempfile.TemporaryDirectory(prefix="danlu-benchmarks-") as folder:
        scratch = Path(folder)
        machine: Facts = child(
            results.describe_machine,
            env=environment(options, scratch),
            device=options.device,
            threads=options.threads,
        )
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
        say(f"{machine.get('accelerator', machine['processor'])}; load {load:.1f}, which should be near 0")
        for name in names:
            say(name)
            try:
                found = importlib.import_module(f"benchmarks.{name}").run(options, scratch)
            except MissingError as reason:
                print(f"{name} skipped: {reason}\n", flush=True)
                continue
            except RuntimeError as fault:
                print(f"{name} failed: {fault}\n", flush=True)
                status = 1
                continue
            for number, table in enumerate(found):
                print(table.markdown(), flush=True)
                tables[name if number == 0 else f"{name}, {table.title}"] = table
            status |= not all(table.sound for table in found)
            kept = results.save(machine, tables, quick=options.quick)
            print(f"Kept in {os.path.relpath(kept)}\n", flush=True)
    return status


def _arguments() -> tuple[list[str], Options]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(NAMES)}; all by default")
    parser.add_argument("--quick", action="store_true", help="a tiny model, once: shows that it runs, measures nothing")
    parser.add_argument("--all", action="store_true", dest="everything", help="sides that are for information, too")
    parser.add_argument("--profile", action="store_true", help="where the time of an update goes (mfu)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--threads", type=int, help="processor threads of either side; all cores by default")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--repeats", type=int, help="how often each side is measured")
    parser.add_argument("--steps", type=int, help="updates a measurement takes")
    given = parser.parse_args()
    if unknown := sorted(set(given.names) - set(NAMES)):
        parser.error(f"there is no benchmark {', '.join(unknown)}; known: {', '.join(NAMES)}")
    options = Options(
        quick=given.quick,
        everything=given.everything,
        profile=given.profile,
        device=_device() if given.device == "auto" else given.device,
        threads=given.threads or _cores(),
        precisions=given.precision,
        repeats=given.repeats,
        steps=given.steps,
    )
    return [name for name in NAMES if name in (given.names or NAMES)], options


def _cores() -> int:
    import psutil

    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def _device() -> str:
    import torch

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found.type if found else "cpu"


if __name__ == "__main__":
    sys.exit(main())
