"""A diagnosis on a terminal, and on one line."""

from __future__ import annotations

import json
import sys

from rich.console import Console as Rich
from rich.table import Table
from rich.text import Text

from danlu.insight.doctor.characters import visible
from danlu.insight.doctor.diagnosis import Diagnosis
from danlu.insight.doctor.finding import Finding, Severity
from danlu.insight.doctor.lengths import Histogram
from danlu.insight.doctor.sample import AVOIDED, Piece, Sample
from danlu.units import percent

_COLORS: dict[Severity, str] = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_BLOCKS = " ▁▂▃▄▅▆▇█"
_PARTS = {"chosen": "green", "desirable": "green", "rejected": "red", "undesirable": "red"}
_EXAMPLES = 3


def show(diagnosis: Diagnosis, rich: Rich | None = None) -> None:
    """What was found, and a few rows with the learned part coloured; one line of JSON where there is no terminal.

    Args:
        diagnosis: what to show.
        rich: where to, by default the standard output.
    """
    if rich is None and not sys.stdout.isatty():
        print(json.dumps(diagnosis.as_dict(), ensure_ascii=False))
        return
    rich = rich or Rich()
    rich.print(Text(diagnosis.verdict, style="bold"))
    rich.print()
    rich.print(_facts(diagnosis))
    if diagnosis.findings:
        rich.print()
        rich.print(_findings(diagnosis.findings))
    for sample in diagnosis.samples:
        rich.print()
        rich.print(_heading(sample))
        rich.print(_decoded(sample))


def summary_line(diagnosis: Diagnosis) -> str:
    """What was found, for the line before a run."""
    train = diagnosis.train
    shapes = ", ".join(_name(shape) for shape in train.shapes)
    parts = [f"looked at {diagnosis.looked_at}" + (f" ({shapes})" if shapes else "")]
    parts.append(f"{train.used:,} to learn from" + (f", left out {train.left_out}" if train.left_out else ""))
    if train.used:
        full = percent(diagnosis.packing_efficiency or 0.0)
        parts.append(f"{percent(train.share_learned)} of {train.tokens:,} tokens learned, packs {full} full")
    doubts = [f"{found.title} ({found.count:,})" for found in diagnosis.findings if found.severity == "warning"]
    if doubts:
        parts.append(f"look at {', '.join(doubts)}")
    return "; ".join(parts)


def _facts(diagnosis: Diagnosis) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    shapes = diagnosis.train.shapes
    table.add_row("rows", Text(", ".join(f"{count:,} {_name(shape)}" for shape, count in shapes.items())))
    lengths = diagnosis.lengths
    if lengths.counts:
        words = f"{lengths.median:,} tokens in the middle, 99 % up to {lengths.most:,}, longest {lengths.longest:,}"
        table.add_row("lengths", Text(words))
        table.add_row("", Text(_bars(lengths)))
    return table


def _name(shape: str) -> str:
    return visible(shape) or "unreadable"


def _bars(lengths: Histogram) -> str:
    """The histogram on one line; a bar that is not empty can be seen."""
    top, last = max(lengths.counts), len(_BLOCKS) - 1
    bars = "".join(_BLOCKS[-(-count * last // top)] for count in lengths.counts)
    is_open = len(lengths.edges) == len(lengths.counts)
    return f"0 {bars} {lengths.edges[-1]:,}{' and more' if is_open else ''}"


def _findings(findings: tuple[Finding, ...]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("")
    table.add_column("rows", justify="right")
    table.add_column("found", overflow="fold")
    for found in findings:
        words = Text.assemble((found.title, "bold"))
        for example in found.examples[:_EXAMPLES]:
            words.append(f"\n{example.where}", style="cyan").append(f" {example.what}")
        words.append(f"\n{found.do}", style="dim")
        table.add_row(Text(found.severity, style=_COLORS[found.severity]), f"{found.count:,}", words)
    return table


def _heading(sample: Sample) -> Text:
    learned = f"  {_name(sample.shape)}, {sample.learned:,} of {sample.tokens:,} tokens learned"
    return Text.assemble((sample.where, "cyan"), (learned, "dim"))


def _decoded(sample: Sample) -> Text:
    """The row in its colours; a prompt and its answers begin on a line each."""
    text, part = Text(), ""
    for piece in sample.pieces:
        if piece.part != part:
            part = piece.part
            text.append("\n" * bool(text)).append(f"{part}: ", style=f"bold {_PARTS.get(part, 'cyan')}")
        text.append(piece.text, style=_style(piece))
    return text


def _style(piece: Piece) -> str:
    """Green is learned, red is learned to be avoided, the rest is dim; special tokens are magenta in all."""
    color = "magenta" if piece.special else "default"
    ground = "dark_red" if piece.part in AVOIDED else "dark_green"
    return f"bold {'bright_magenta' if piece.special else 'white'} on {ground}" if piece.learned else f"dim {color}"
