"""`danlu export`: what was written, as words and a table on a terminal and as one JSON object elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from rich.console import Console as Rich
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from danlu.engine.record import json_line
from danlu.exporting import Exported, Heard

_SHOWN = 3
"""Names of parameters that a sentence shows."""


@contextmanager
def progress() -> Iterator[Heard]:
    """How far it is: a bar on a terminal, nothing elsewhere."""
    if not sys.stdout.isatty():
        yield lambda *_: None
        return
    columns = (TextColumn("matrices"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("", total=None, visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def show(found: Exported) -> None:
    """Say what was written."""
    if not sys.stdout.isatty():
        print(json_line(_row(found)))
        return
    rich = Rich(highlight=False)
    if found.full is not None:
        table = Table("rank", "error", "worst matrix", "", box=None)
        for at in (*found.errors, found.full):
            label = "full" if at is found.full else str(at.rank)
            table.add_row(label, f"{at.overall:.3g}", f"{at.worst:.3g}", at.matrix)
        rich.print(table)
    if told := left_out(found):
        rich.print(told, markup=False, soft_wrap=True)
    what = f"{found.kind} of {found.numbers:,} numbers, {found.bytes / 2**20:,.1f} MiB"
    rich.print(f"{what}: {found.path}", markup=False, soft_wrap=True)


def left_out(found: Exported) -> str:
    """A sentence on what differs and is not in the adapter; "" where nothing is left out."""
    if not found.left_out:
        return ""
    names = sorted(found.left_out, key=lambda name: -found.left_out[name])
    shown = ", ".join(f"{name} ({found.left_out[name]:.2g} of its length)" for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    modules = dict.fromkeys(name.rpartition(".")[0].rpartition(".")[2] for name in names)
    carry = " ".join(f"--also {module}" for module in modules)
    one = len(names) == 1
    number = "one parameter differs, and is" if one else f"{len(names)} parameters differ, and are"
    return f"Outside the matrices {number} left out: {shown}{more}. To carry {'it' if one else 'them'} whole: {carry}."


def _row(found: Exported) -> dict[str, Any]:
    row: dict[str, Any] = {
        "out": str(found.path),
        "kind": found.kind,
        "numbers": found.numbers,
        "bytes": found.bytes,
    }
    if found.full is not None:
        row |= {
            "rank": found.rank,
            "errors": [asdict(at) for at in found.errors],
            "full": asdict(found.full),
            "left_out": dict(found.left_out),
        }
        if told := left_out(found):
            row["note"] = told
    return row
