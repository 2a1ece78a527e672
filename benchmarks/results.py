"""Tables, the machine they were measured on, and the files they are kept in."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"
_PACKAGES = ("danlu", "torch", "transformers", "datasets", "accelerate", "tokenizers", "numpy")


@dataclass(frozen=True)
class Table:
    """What one benchmark found.

    Attributes:
        title: what was measured.
        columns: their names.
        rows: their cells.
        notes: what one must know to read it.
        raw: every single measurement, as JSON.
        sound: whether the sides computed the same; a table that is not is void.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    raw: Any = None
    sound: bool = True
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))

    def markdown(self) -> str:
        """The table, its columns aligned."""
        widths = [max(len(str(row[i])) for row in (self.columns, *self.rows)) for i in range(len(self.columns))]
        lines = [[str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)] for row in self.rows]
        head = [name.ljust(width) for name, width in zip(self.columns, widths, strict=True)]
        table = [head, ["-" * width for width in widths], *lines]
        grid = "\n".join(f"| {' | '.join(row)} |" for row in table)
        notes = "".join(f"\n- {note}" for note in (*self.notes, f"Measured {self.date}."))
        return f"## {self.title}\n\n{grid}\n{notes}\n"


def describe_machine(device: str, threads: int) -> dict[str, str]:
    """The machine, without its name; run in a child, since it imports torch."""
    import psutil

    from danlu.engine.device import Device

    chosen, host = Device.choose(device, threads), Device.choose("cpu", threads)
    cores = f"{psutil.cpu_count(logical=False)}, with {os.cpu_count()} hardware threads"
    facts = {
        "processor": host.name,
        "cores": f"{cores}; {chosen.threads} threads used",
        "memory": f"{host.memory_bytes / 2**30:.1f} GiB",
    }
    if chosen.kind != "cpu":
        facts["accelerator"] = f"{chosen.name}, {chosen.memory_bytes / 2**30:.1f} GiB"
    facts |= {"system": _system(), "python": platform.python_version()}
    return facts | {package: _version(package) for package in _PACKAGES} | {"name": _name(chosen)}


def _name(device: Any) -> str:
    """What the results' file is called: the kind of machine."""
    return "cpu" if device.kind == "cpu" else re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-")


def _system() -> str:
    try:
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        system = platform.system()
    return f"{system}, {platform.system()} {platform.release()}, {'-'.join(platform.libc_ver())}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def installed(package: str) -> bool:
    """Whether a peer is here."""
    return importlib.util.find_spec(package) is not None


def _benchmark(table: str) -> str:
    """What a table is of; a benchmark's further tables are called NAME, TITLE."""
    return table.partition(",")[0]


def save(machine: dict[str, str], tables: dict[str, Table], *, quick: bool) -> Path:
    """Write `NAME.md` and `NAME.json`; what other runs on the very same machine and versions found stays in them."""
    folder = FOLDER / "quick" if quick else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{machine['name']}.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    before = known["tables"] if known.get("machine") == machine else {}
    again = {_benchmark(name) for name in tables}
    kept = {name: Table(**fields) for name, fields in before.items() if _benchmark(name) not in again} | tables
    content = {"machine": machine, "tables": {name: asdict(table) for name, table in sorted(kept.items())}}
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    header = "".join(f"- {key}: {value}\n" for key, value in machine.items() if key != "name")
    warning = "A quick run: it shows that the benchmarks run, and its figures mean nothing.\n\n" if quick else ""
    title = f"# Measured on: {machine.get('accelerator', machine['processor'])}\n\n"
    texts = "\n".join(table.markdown() for _, table in sorted(kept.items()))
    file.with_suffix(".md").write_text(f"{title}{warning}{header}\n{texts}")
    return file.with_suffix(".md")
