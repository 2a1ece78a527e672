"""Commands on what has been trained: generate, export, eval, chat, play; as thin as the rest of the command line."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

_MODEL = typer.Argument(metavar="MODEL", help="A directory in the hub's format, as RUN/final.")
_EVALUATION = typer.Argument(metavar="[KEY=VALUE]...", help="As data.eval=FILE tasks=loss,gsm8k.", show_default=False)
_TRUST = typer.Option("--trust-remote-code", help="Let Python code that comes with the checkpoint run.")
_ADAPTER = typer.Option(metavar="DIR", help="An adapter to put on MODEL; may be given several times.")


_ROWS = typer.Argument(metavar="[KEY=VALUE]...", help="Of a density: fields of its method, as method.steps=10.")
_OF_TEXTS = {"prompt", "tokens", "temperature", "top_k", "top_p", "adapter", "trust"}
_OF_ROWS = {"overrides", "num", "out", "of_class", "condition"}


def generate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, or its final/: a language model or a density.")],
    overrides: Annotated[list[str] | None, _ROWS] = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="A text to continue; may be given several times.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to continue by, at most.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Only the so many likeliest tokens.")] = None,
    top_p: Annotated[float, typer.Option(min=0.01, max=1, help="Only the likeliest that have this share.")] = 0.95,
    num: Annotated[int, typer.Option("--num", "-n", min=1, help="Of a density: how many rows.")] = 64,
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Of a density: .npy, .npz, .csv, .parquet; images: .png, a folder."),
    ] = None,
    of_class: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="Of a density: only that class.")
    ] = None,
    condition: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="Of a density: given these, as 0.5,2.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another text, other rows.")] = 0,
    adapter: Annotated[list[str] | None, _ADAPTER] = None,
    trust: Annotated[bool, _TRUST] = False,
) -> None:
    """Continue texts, with several adapters each by every one of them; or make rows of a density."""
    from danlu.sampling import is_density, require_density, sample_to

    told = {name for name in context.params if _told(context, name)}
    if is_density(model):
        _refuse(told & _OF_TEXTS, "a density continues no text", "Ask for rows: --num N --out FILE.")
        if out is None:
            raise typer.BadParameter("say where rows go: --out FILE", param_hint="--out")
        typer.echo(
            sample_to(out, model, num=num, seed=seed, of_class=of_class, condition=condition, overrides=overrides or ())
        )
        return
    if told & _OF_ROWS:
        require_density(model)
        _refuse(told & _OF_ROWS, "a language model makes no rows", "Give it a text: --prompt TEXT.")
    if not prompt:
        raise typer.BadParameter("say what to continue: --prompt TEXT", param_hint="--prompt")
    options = {"max_new_tokens": tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    _continue(model, prompt, adapter or [], trust, options)


def _continue(model: str, prompt: list[str], adapter: list[str], trust: bool, options: dict[str, Any]) -> None:
    from danlu import load

    loaded = load(model, adapters=adapter, trust_remote_code=trust)
    names: list[str | None] = list(loaded.adapters) or [None]
    pairs = [(start, name) for start in prompt for name in names]
    texts = loaded.generate(
        [start for start, _ in pairs], adapters=[name for _, name in pairs] if adapter else None, **options
    )
    for (start, name), text in zip(pairs, texts, strict=True):
        by = {} if name is None else {"adapter": name}
        if sys.stdout.isatty():
            typer.echo(f"{'' if name is None else f'[{name}] '}{start}{text}")
        else:
            typer.echo(json.dumps({"prompt": start, **by, "text": text}, ensure_ascii=False))


def _told(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _refuse(told: set[str], what: str, do: str) -> None:
    """Say which option does not fit, if one was given."""
    from danlu.errors import RecipeError

    if told:
        name = {"of_class": "--class", "overrides": "KEY=VALUE", "trust": "--trust-remote-code"}
        first = min(told)
        raise RecipeError(what, where=name.get(first, f"--{first.replace('_', '-')}"), do=do)


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


def eval_(
    model: Annotated[str, _MODEL],
    overrides: Annotated[list[str] | None, _EVALUATION] = None,
    lm_eval: Annotated[str, typer.Option(help="Tasks of lm-eval to run, too, as arc_easy,hellaswag.")] = "",
    out: Annotated[str | None, typer.Option(help="Write all of it as JSON, a record a sample.")] = None,
    adapter: Annotated[list[str] | None, _ADAPTER] = None,
    trust: Annotated[bool, _TRUST] = False,
) -> None:
    """Measure a model: loss, perplexity, accuracy; answers; tasks of lm-eval; how likely rows are under a density."""
    from danlu.eval_terminal import evaluate_model, score_rows
    from danlu.sampling import is_density

    if is_density(model):
        told = {name for name, given in (("lm_eval", lm_eval), ("adapter", adapter), ("trust", trust)) if given}
        _refuse(told, "a density answers no questions", "Score rows by it: data.eval=FILE.")
        score_rows(model, overrides or [], out=out)
        return
    tasks = [task for task in lm_eval.split(",") if task]
    evaluate_model(model, overrides or [], lm_eval=tasks, out=out, adapters=adapter or (), trust_remote_code=trust)


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
