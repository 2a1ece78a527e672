"""The command line: thin, and quick to start; whatever is heavy is imported by the command that needs it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

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
_RUN = typer.Argument(metavar="RUN", help="A run's directory.")


@app.command()
def train(
    recipe: Annotated[str, _RECIPE],
    overrides: Annotated[list[str] | None, _OVERRIDES] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, say what would run, write nothing.")
    ] = False,
) -> None:
    """Train as a recipe says."""
    from danlu import console, training

    if dry_run:
        console.show_plan(training.dry_run(recipe, *(overrides or [])))
        return
    with console.Console() as listener:
        run = training.train(recipe, *(overrides or []), listeners=[listener])
    _finish(run)


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
    """Say what came of a run; a run that was interrupted ends with the status of its signal."""
    import signal

    from danlu import console, training

    assert isinstance(run, training.Run)
    console.show_result(run)
    if run.reason != "done":
        raise typer.Exit(128 + signal.Signals[run.reason])


@app.command()
def report(run: Annotated[str, _RUN]) -> None:
    """Write a run's report.html and say where it is."""
    from pathlib import Path

    from danlu.insight.report import write_report

    typer.echo(write_report(Path(run)))


@app.command()
def generate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A directory in the hub's format, as RUN/final.")],
    prompt: Annotated[
        list[str], typer.Option("--prompt", "-p", help="A text to continue; may be given several times.")
    ],
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to continue by, at most.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Only the so many likeliest tokens.")] = None,
    top_p: Annotated[float, typer.Option(min=0.01, max=1, help="Only the likeliest that have this share.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another text.")] = 0,
) -> None:
    """Continue texts."""
    import json

    from danlu import load

    loaded = load(model)
    texts = loaded.generate(prompt, max_new_tokens=tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    for start, text in zip(prompt, texts, strict=True):
        typer.echo(
            f"{start}{text}" if sys.stdout.isatty() else json.dumps({"prompt": start, "text": text}, ensure_ascii=False)
        )


@app.command("list")
def list_(
    what: Annotated[
        str | None, typer.Argument(metavar="[WHAT]", help="recipes, or a kind; everything by default.")
    ] = None,
) -> None:
    """List what there is, each with its source."""
    from danlu import console

    console.show_catalogue(what)


@app.command()
def recipe(name: Annotated[str, _RECIPE]) -> None:
    """Print a recipe with every field there is, commented, to be edited."""
    from danlu.commented import commented_recipe

    typer.echo(commented_recipe(name), nl=False)


def main() -> None:
    """Run a command; whatever is wrong is one sentence and a non-zero status."""
    try:
        app()
    except DanluError as error:
        typer.echo(f"danlu: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("danlu: interrupted", err=True)
        sys.exit(130)
