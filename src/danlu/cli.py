"""The command line: thin, and quick to start; whatever is heavy is imported by the command that needs it."""

from __future__ import annotations

import json
import os
import sys
from typing import Annotated

import typer

from danlu import require_system
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
_MODEL = typer.Argument(metavar="MODEL", help="A directory in the hub's format, as RUN/final.")
_EVALUATION = typer.Argument(metavar="[KEY=VALUE]...", help="As data.eval=FILE tasks=loss,gsm8k.", show_default=False)
_TRUST = typer.Option("--trust-remote-code", help="Let Python code that comes with the checkpoint run.")
_QUARANTINE = typer.Option(metavar="DIR", help="Set rows aside there that cannot be used; short for data.quarantine.")
_RUN = typer.Argument(metavar="RUN", help="A run's directory.")
_ADAPTER = typer.Option(metavar="DIR", help="An adapter to put on MODEL; may be given several times.")


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


@app.command()
def generate(
    model: Annotated[str, _MODEL],
    prompt: Annotated[
        list[str], typer.Option("--prompt", "-p", help="A text to continue; may be given several times.")
    ],
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to continue by, at most.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Only the so many likeliest tokens.")] = None,
    top_p: Annotated[float, typer.Option(min=0.01, max=1, help="Only the likeliest that have this share.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another text.")] = 0,
    adapter: Annotated[list[str] | None, _ADAPTER] = None,
    trust: Annotated[bool, _TRUST] = False,
) -> None:
    """Continue texts; with several adapters, each text by every one of them."""
    import json

    from danlu import load

    loaded = load(model, adapters=adapter or (), trust_remote_code=trust)
    names: list[str | None] = list(loaded.adapters) or [None]
    pairs = [(start, name) for start in prompt for name in names]
    texts = loaded.generate(
        [start for start, _ in pairs],
        adapters=[name for _, name in pairs] if adapter else None,
        max_new_tokens=tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
    )
    for (start, name), text in zip(pairs, texts, strict=True):
        by = {} if name is None else {"adapter": name}
        if sys.stdout.isatty():
            typer.echo(f"{'' if name is None else f'[{name}] '}{start}{text}")
        else:
            typer.echo(json.dumps({"prompt": start, **by, "text": text}, ensure_ascii=False))


@app.command()
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a checkpoint or an adapter.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="The directory to write, which must not exist.")],
    step: Annotated[int | None, typer.Option(help="The run's checkpoint of that step instead of its end.")] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Put the adapter into its base: one whole checkpoint.")
    ] = False,
    delta_from: Annotated[
        str | None, typer.Option(metavar="BASE", help="Write what a fine-tune adds to its base, as a LoRA.")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Of that LoRA.")] = None,
    also: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Modules that it carries whole, as norm or lm_head.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of what is written: fp32, bf16, fp16.")] = "fp32",
    trust: Annotated[bool, _TRUST] = False,
) -> None:
    """Write what came of training for others to load: whole, merged, or as an adapter of low rank."""
    from danlu import export_terminal, exporting

    with export_terminal.progress() as heard:
        exported = exporting.export(
            model,
            out,
            step=step,
            merge=merge,
            delta_from=delta_from,
            rank=rank,
            also=also or (),
            dtype=dtype,
            trust_remote_code=trust,
            heard=heard,
        )
    export_terminal.show(exported)


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


@app.command("eval")
def eval_(
    model: Annotated[str, _MODEL],
    overrides: Annotated[list[str] | None, _EVALUATION] = None,
    lm_eval: Annotated[str, typer.Option(help="Tasks of lm-eval to run, too, as arc_easy,hellaswag.")] = "",
    out: Annotated[str | None, typer.Option(help="Write all of it as JSON, a record a sample.")] = None,
    adapter: Annotated[list[str] | None, _ADAPTER] = None,
    trust: Annotated[bool, _TRUST] = False,
) -> None:
    """Measure a model: loss, perplexity, bits per byte, accuracy; answers; tasks of lm-eval."""
    from danlu.eval_terminal import evaluate_model

    tasks = [task for task in lm_eval.split(",") if task]
    evaluate_model(model, overrides or [], lm_eval=tasks, out=out, adapters=adapter or (), trust_remote_code=trust)


@app.command()
def chat(
    model: Annotated[str, _MODEL],
    template: Annotated[str | None, typer.Option(help="chatml or a .jinja file; the model's own by default.")] = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token.")] = 0.7,
    top_p: Annotated[
        float | None, typer.Option(min=0.01, max=1, help="Only the likeliest that have this share.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Only the so many likeliest tokens.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest reply.")] = 1024,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another text.")] = 0,
    trust: Annotated[bool, _TRUST] = False,
) -> None:
    """Talk with a model, by the template it was trained with."""
    from danlu.chat_terminal import chat as talk

    talk(
        model,
        template=template,
        system=system,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_tokens=max_tokens,
        seed=seed,
        trust_remote_code=trust,
    )


@app.command()
def play(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run that learned from acting, or its final/.")],
    episodes: Annotated[int, typer.Option(min=1, help="How many.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Of the first; the others have the next ones.")] = 0,
    longest: Annotated[int, typer.Option(min=1, help="Steps after which an episode is cut short.")] = 1000,
    out: Annotated[str | None, typer.Option(metavar="FILE.gif", help="Write what is seen as a GIF.")] = None,
    window: Annotated[bool, typer.Option("--window", help="Show it on the screen.")] = False,
) -> None:
    """Let a trained agent act, by what it thinks best."""
    from pathlib import Path

    from danlu.play_terminal import play_run

    gif = None if out is None else Path(out)
    play_run(run, episodes=episodes, seed=seed, longest=longest, out=gif, window=window)


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
