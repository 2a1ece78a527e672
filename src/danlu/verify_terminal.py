"""`danlu verify`: its checks as a table on a terminal, and as one JSON object elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console as Rich
from rich.table import Table
from rich.text import Text

from danlu.verifying import Checked, Verdict, Verification, verify

_COLORS: dict[Verdict, str] = {"holds": "green", "fails": "bold red", "does not apply": "dim"}


def verify_recipe(recipe: str | Path, overrides: Sequence[str] = (), *, as_json: bool = False) -> Verification:
    """Verify a recipe and say what came of it; what is being measured is told on the standard error.

    Args:
        recipe: a path or a built-in name.
        overrides: "dotted.key=value".
        as_json: write one JSON object (`Verification.as_dict`), on a terminal too.
    """
    with _progress() as told:
        found = verify(recipe, *overrides, progress=told)
    show(found, as_json=as_json)
    return found


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """What is being measured: one changing line on a terminal, a line each elsewhere."""
    rich = Rich(stderr=True)
    if not rich.is_terminal:
        yield lambda title: print(title, file=sys.stderr, flush=True)
        return
    with rich.status("its model and data") as status:
        yield status.update


def show(found: Verification, *, as_json: bool = False) -> None:
    """Say what was found: a table on a terminal, one line of JSON elsewhere or where it is asked for."""
    if as_json or not sys.stdout.isatty():
        print(json.dumps(found.as_dict(), ensure_ascii=False))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("check", overflow="fold")
    table.add_column("measured", overflow="fold", ratio=1)
    for name in ("error", "tolerance"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for checked in found.checks:
        error, tolerance = _number(checked.error), _number(checked.tolerance)
        table.add_row(checked.title, _words(checked), error, tolerance, Text(checked.verdict, _COLORS[checked.verdict]))
    rich = Rich()
    rich.print(table)
    rich.print()
    failing = sum(checked.verdict == "fails" for checked in found.checks)
    verdict = f"{failing} of {len(found.checks)} checks fail" if failing else "all checks that apply hold"
    beside = f"{found.architecture}, {found.samples} samples of {found.tokens:,} tokens, float32 on {found.device}"
    rich.print(Text.assemble((verdict, "bold"), (f": {beside}", "dim")))


def _words(checked: Checked) -> Text:
    """What was measured; below, what is wrong or why nothing was."""
    words = Text.assemble((checked.measured, "dim"))
    if checked.verdict != "holds":
        words.append("\n" if checked.measured else "").append(checked.sentence)
    return words


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value == int(value) else f"{value:.0e}"
