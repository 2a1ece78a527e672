"""The command line: thin, and quick to start; whatever is heavy is imported by the command that needs it."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated

import typer

from danlu import model_commands, require_system
from danlu.errors import DanluError

app = typer.Typer(
    name="danlu",
    help="Danlu: one padding-free training system.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_RECIPE = typer.Argument(metavar="RECIPE", help="A recipe's path, or a built-in name (danlu list recipes).")
_OVERRIDES = typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, as run.steps=100.", show_default=False)
_QUARANTINE = typer.Option(metavar="DIR", help="Set rows aside there that cannot be used; short for data.quarantine.")
_RUN = typer.Argument(metavar="RUN", help="A run's directory.")


_OUT_OF_TIME = 124
"""The status of a command that timeout(1) ended."""


@app.command()
def train(
    recipe: Annotated[str, _RECIPE],
    overrides: Annotated[list[str] | None, _OVERRIDES] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would run, write nothing.")
    ] = False,
    quarantine: Annotated[str | None, _QUARANTINE] = None,
) -> None:
    """Train as a recipe says."""
    from danlu import console, training

    settings = _with_quarantine(overrides, quarantine)
    if dry_run:
        console.show_plan(training.dry_run(recipe, *settings))
        return
    with console.Console() as listener:
        run = training.train(recipe, *settings, listeners=[listener])
    _finish(run)


def _with_quarantine(overrides: list[str] | None, folder: str | None) -> list[str]:
    return [*(overrides or []), *([] if folder is None else [f"data.quarantine={json.dumps(folder)}"])]


@app.command()
def resume(
    run: Annotated[str, _RUN],
    overrides: Annotated[list[str] | None, _OVERRIDES] = None,
    step: Annotated[int | None, typer.Option(help="The checkpoint to go on from; the last by default.")] = None,
) -> None:
    """Go on with a run from its last checkpoint."""
    from danlu import console, training

    with console.Console() as listener:
        resumed = training.resume(run, *(overrides or []), step=step, listeners=[listener])
    _finish(resumed)


def _finish(run: object) -> None:
    """Say what came of a run; one that a signal ended has its status, and one whose time was up that of timeout(1)."""
    import signal

    from danlu import console, training

    assert isinstance(run, training.Run)
    if _speaks():
        console.show_result(run)
    if run.reason == "max_time":  # any status but 0 has `torchrun` begin it anew, its time being over
        raise typer.Exit(0 if "TORCHELASTIC_RESTART_COUNT" in os.environ else _OUT_OF_TIME)
    if run.reason != "done":
        raise typer.Exit(128 + signal.Signals[run.reason])


@app.command()
def report(
    run: Annotated[str, _RUN],
    others: Annotated[
        list[str] | None, typer.Option("--with", metavar="RUN", help="Runs with other seeds, to draw beside it.")
    ] = None,
) -> None:
    """Write a run's report.html and say where it is."""
    from pathlib import Path

    from danlu.insight.report import write_report

    typer.echo(write_report(Path(run), [Path(other) for other in others or ()]))


app.command()(model_commands.generate)
app.command()(model_commands.export)


@app.command()
def check(
    recipe: Annotated[str, _RECIPE],
    overrides: Annotated[list[str] | None, _OVERRIDES] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Look at so many rows; at all by default.")] = None,
    html: Annotated[str | None, typer.Option(help="Write what was found as a page, too.")] = None,
    quarantine: Annotated[str | None, _QUARANTINE] = None,
) -> None:
    """Look at a recipe's data: what would be learned, and what is wrong with it."""
    from pathlib import Path

    from danlu.checking import check as examine
    from danlu.insight.doctor import show, write_html

    diagnosis = examine(recipe, *_with_quarantine(overrides, quarantine), rows=rows)
    show(diagnosis)
    if html is not None:
        typer.echo(write_html(diagnosis, Path(html)), err=True)
    if diagnosis.worst == "error":
        raise typer.Exit(1)


@app.command()
def verify(
    recipe: Annotated[str, _RECIPE],
    overrides: Annotated[list[str] | None, _OVERRIDES] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write one JSON object, on a terminal too.")] = False,
) -> None:
    """Measure what Danlu promises on a recipe's own model and data; status 1 if any of it fails."""
    from danlu.verify_terminal import verify_recipe

    if not verify_recipe(recipe, overrides or [], as_json=as_json).holds:
        raise typer.Exit(1)


app.command("eval")(model_commands.eval_)
app.command()(model_commands.chat)
app.command()(model_commands.play)


@app.command("list")
def list_(
    what: Annotated[
        str | None, typer.Argument(metavar="[WHAT]", help="recipes, or a kind; everything by default.")
    ] = None,
    by: Annotated[
        str | None, typer.Option(metavar="WORD", help="Group methods by goal, mechanism, data or level.")
    ] = None,
) -> None:
    """List what there is, each with its source."""
    from danlu import console

    if by is None:
        console.show_catalogue(what)
    elif what in (None, "method", "methods"):
        console.show_methods(by)
    else:
        from danlu.errors import RecipeError

        raise RecipeError(f"--by groups methods, not {what}", do=f"Ask for: danlu list methods --by {by}.")


@app.command()
def recipe(name: Annotated[str, _RECIPE]) -> None:
    """Print a recipe with every field there is, commented, to be edited."""
    from danlu.commented import commented_recipe

    typer.echo(commented_recipe(name), nl=False)


def main() -> None:
    """Run a command; whatever is wrong is one sentence and a non-zero status."""
    status = _status()
    sys.stdout.flush()
    sys.stderr.flush()
    if _several():
        os._exit(status)  # threads of a process group that is gone may abort an interpreter that takes its time
    sys.exit(status)


def _several() -> bool:
    return os.environ.get("WORLD_SIZE", "1") != "1"


def _speaks() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _status() -> int:
    try:
        require_system()
        app()
    except DanluError as error:
        _say(error)
        return 1
    except KeyboardInterrupt:
        typer.echo("danlu: interrupted", err=True)
        return 130
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    return 0


def _say(error: DanluError) -> None:
    """Say what is wrong, if no other rank does."""
    if not _several():
        typer.echo(f"danlu: {error}", err=True)
        return
    import signal

    from danlu.engine.launch import say_once

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # by which `torchrun` ends all when one has, also who has not spoken
    say_once(f"danlu: {error}", lambda words: typer.echo(words, err=True), leads=_speaks(), told=error.told)
