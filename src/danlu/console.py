"""What a run says while it goes: a progress line on a terminal, JSON lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console as Rich
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from danlu.engine.record import json_line, rows_of
from danlu.errors import RecipeError, did_you_mean
from danlu.units import memory

if TYPE_CHECKING:
    from danlu.training import Run

_QUIET_SECONDS = 10.0
_TOLD = ("warning", "skip", "rollback")
"""Kinds of events that guards speak by."""


class Console:
    """Listens to a run; on a terminal draws its progress, elsewhere prints a row now and then, as JSON."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._draws = self._terminal and os.environ.get("RANK", "0") == "0"  # the others of its ranks hear nothing
        self._spoke = 0.0
        self._steps: int | None = None
        self._rich = Rich()
        self._env_steps: int | None = None
        columns = (
            TextColumn("{task.fields[what]}"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
        )
        self._progress = Progress(*columns, TimeRemainingColumn(), console=self._rich)
        self._task = self._progress.add_task("", total=None, what="step")

    def __enter__(self) -> Self:
        if self._draws:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def metrics(self, row: Mapping[str, Any]) -> None:
        """See `Listener`."""
        if not self._terminal:
            if any(name.startswith("held_out_") for name in row) or time.monotonic() - self._spoke > _QUIET_SECONDS:
                self._say(row)
            return
        if "loss" in row:
            taken, most = row.get("total_env_steps", 0), self._env_steps
            done = row["step"] if most is None else min(taken, most)
            self._progress.update(self._task, completed=done, description=_measured(row))
        if "held_out_return" in row:
            spread = f"{row['held_out_return']:.2f} ± {row['held_out_return_std']:.2f}"
            self._progress.print(f"step {row['step']:>6}  without exploring: return {spread}")
        if "held_out_loss" in row:
            bits = row.get("held_out_bits_per_byte")
            more = "" if bits is None else f"  {bits:.3f} bits/byte"
            self._progress.print(f"step {row['step']:>6}  held out: loss {row['held_out_loss']:.4f}{more}")

    def event(self, event: Mapping[str, Any]) -> None:
        """See `Listener`."""
        kind = event["kind"]
        if kind in ("start", "resume"):
            self._steps = event["steps"]
            self._progress.update(self._task, total=event["steps"] or None, completed=event.get("step", 0))
        if not self._terminal:
            if kind in ("data", "world", "rows", "model", "ranks", "note", "doctor", "resume", *_TOLD):
                self._say({k: v for k, v in event.items() if k not in ("time", "length_histogram")})
        elif kind in ("note", "doctor", *_TOLD):
            self._progress.print(event["message"], markup=False, highlight=False)
        elif kind == "data":
            self._progress.print(_told(event))
        elif kind == "world":
            self._progress.print(_world(event))
            if event.get("env_steps") and not self._steps:  # it is as long as its steps in the world last
                self._env_steps = event["env_steps"]
                self._progress.update(self._task, total=self._env_steps, completed=0, what="environment step")
        elif kind == "rows":
            self._progress.print(_rows(event), markup=False, highlight=False)
        elif kind == "ranks":
            self._progress.print(f"{event['size']} ranks, {event['parallel']}")
        elif kind == "model":
            self._progress.print(_trained(event))

    def close(self) -> None:
        """See `Listener`."""
        if self._draws:
            self._progress.stop()

    def _say(self, row: Mapping[str, Any]) -> None:
        self._spoke = time.monotonic()
        print(json_line(row), flush=True)


def _measured(row: Mapping[str, Any]) -> str:
    """An update, on a line."""
    words = f"loss {row['loss']:.3g}"
    if "tokens_per_second" in row:
        return f"loss {row['loss']:.3f}  {row['tokens_per_second']:,.0f} tokens/s  mfu {row['mfu']:.0%}"
    if "return" in row:
        words += f"  return {row['return']:.2f}"
    if "total_env_steps" in row:
        words += f"  {row['total_env_steps']:,} steps  {row['steps_per_second']:,.0f} steps/s"
    if "samples_per_second" in row:
        words += f"  {row['samples_per_second']:,.0f} rows/s"
    return words


def _rows(rows: Mapping[str, Any]) -> str:
    """What rows a distribution is learned of, on a line."""
    each = " x ".join(map(str, rows["shape"])) + (" numbers" if len(rows["shape"]) == 1 else " images")
    given = f", given one of {rows['classes']} classes" if rows["classes"] else ""
    given += f", given {rows['features']} numbers" if rows["features"] else ""
    return f"{rows['rows']:,} rows of {each}{given}; {rows['held_out_rows']:,} held out"


def _world(world: Mapping[str, Any]) -> str:
    """What is acted in, on a line."""
    if world["env"] is None:
        return "no world: what is learned is drawn by chance"
    return f"{world['num_envs']} x {world['env']}: {world['observation']} to {world['action']}"


_LEFT_OUT = ("cut", "truncated", "empty", "too_short", "unlearned", "refused", "faults")


def _told(data: Mapping[str, Any]) -> str:
    """What is learned from, on a line."""
    shapes = ", ".join(f"{count:,} {shape}" for shape, count in data["shapes"].items())
    odd = ", ".join(f"{data[name]:,} {name.replace('_', ' ')}" for name in _LEFT_OUT if data[name])
    so_far = "" if data["complete"] else " of what has been read so far"
    learned = data["learned"] / max(data["targets"], 1)
    return (
        f"{data['documents']:,} documents ({shapes}), {data['tokens']:,} tokens, {learned:.0%} learned, "
        f"{data['samples']:,} samples{so_far}{f' ({odd})' if odd else ''}; "
        f"{data['held_out_samples']:,} held out; vocabulary {data['vocab_size']:,}"
    )


def _trained(model: Mapping[str, Any]) -> str:
    """What is trained, on a line."""
    whole, trained = model["parameters"], model["trainable"]
    what = next(model[kind] for kind in ("architecture", "agent", "density") if kind in model)
    line = f"{what}: {whole:,} parameters"
    if trained == whole or "saved_bytes" not in model:
        return line
    saved = f"{memory(model['saved_bytes'])} of gradients and averages saved, {model['passes'] / 3:.0%} of the products"
    return f"{line}, {trained:,} ({trained / whole:.2%}) trained; {saved}"


def show_plan(plan: Mapping[str, Any]) -> None:
    """What a dry run found."""
    if not sys.stdout.isatty():
        print(json_line(plan))
        return
    table = Table(show_header=False, box=None)
    for name, value in plan.items():
        words = ", ".join(f"{v:,} {k}" for k, v in value.items()) if isinstance(value, Mapping) else value
        table.add_row(name.replace("_", " "), f"{words:,.0f}" if isinstance(words, int | float) else str(words))
    Rich().print(table)


def show_result(run: Run) -> None:
    """What came of a run."""
    samples = [e for e in rows_of(run.path / "events.jsonl") if e["kind"] == "sample"]
    report = run.path / "report.html"
    if not sys.stdout.isatty():
        sample = samples[-1]["prompt"] + samples[-1]["text"] if samples else None
        result = {"run": str(run.path), "reason": run.reason, **run.metrics, "sample": sample, "report": str(report)}
        way_on = {} if run.reason == "done" else {"go_on": f"danlu resume {run.path}"}
        print(json_line({**result, **way_on}))
        return
    rich = Rich()
    if samples:
        rich.rule("a sample")
        rich.print(f"[bold]{_plain(samples[-1]['prompt'])}[/]{_plain(samples[-1]['text'])}", highlight=False)
        rich.rule()
    for name, words in (
        ("held_out_bits_per_byte", "bits per byte"),
        ("held_out_perplexity", "perplexity"),
        ("held_out_loss", "loss"),
        ("held_out_return", "return"),
    ):
        if run.metrics.get(name) is not None:
            rich.print(f"{'' if words == 'return' else 'held-out '}{words}: [bold]{run.metrics[name]:.4f}[/]")
    if run.reason != "done":
        ended = "its time is up" if run.reason == "max_time" else f"stopped by {run.reason}"
        rich.print(f"{ended}; go on by: danlu resume {run.path}")
    elif (run.path / "final").exists():
        rich.print(f"model: {run.path / 'final'}")
    rich.print(f"report: {report}", soft_wrap=True)


def show_catalogue(what: str | None) -> None:
    """Everything exported, or one kind of it."""
    from danlu.reading import builtin_recipes
    from danlu.registry import exported, kinds

    known = ["recipes", *kinds()]
    wanted = known if what is None else [what if what in known else what.removesuffix("s")]
    if wanted[0] not in known:
        raise RecipeError(f"there is no '{what}' to list", do=did_you_mean(str(what), known))
    rows = [("recipe", name, "", "") for name in builtin_recipes()] if "recipes" in wanted else []
    rows += [(e.kind, e.name, e.summary, e.source) for kind in wanted if kind != "recipes" for e in exported(kind)]
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(row))
        return
    table = _table("kind", "name", "what it is", "source")
    for row in rows:
        table.add_row(*map(_plain, row))
    Rich().print(table)


def show_methods(by: str) -> None:
    """Every method under a word of what it is for, how it learns, what from, or what it keeps that in."""
    from danlu.catalogue import methods_by

    groups = methods_by(by)
    if not sys.stdout.isatty():
        for word, entries in groups.items():
            for entry in entries:
                print("\t".join((word, entry.name, entry.summary, entry.source)))
        return
    table = _table(by, "name", "what it is", "source")
    for word, entries in groups.items():
        for number, entry in enumerate(entries):
            first = "" if number else f"[bold]{_plain(word)}[/]"
            table.add_row(first, *map(_plain, (entry.name, entry.summary, entry.source)))
        table.add_section()
    Rich().print(table)


def _table(*columns: str) -> Table:
    """A table whose last column, which holds links, is broken rather than cut short."""
    table = Table(*columns[:-1], box=None)
    table.add_column(columns[-1], overflow="fold")
    return table


def _plain(text: str) -> str:
    """Text in which rich finds no markup."""
    from rich.markup import escape

    return escape(text)
