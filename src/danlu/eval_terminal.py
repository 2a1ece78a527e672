"""`danlu eval`: what an evaluation found, as a table on a terminal and as JSON lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console as Rich
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from danlu.build import PRECISIONS, prepare
from danlu.engine.device import Device
from danlu.engine.record import json_line
from danlu.errors import RecipeError
from danlu.evaluation import EvalRecipe, EvalRun, Evaluation, Result, evaluate
from danlu.evaluation.config import read_eval_recipe
from danlu.evaluation.evaluate import Progress as Heard
from danlu.generate import LanguageModel
from danlu.generate.chat_session import chat_template


def evaluate_model(
    model: str | Path,
    overrides: Sequence[str] = (),
    *,
    lm_eval: Sequence[str] = (),
    out: str | Path | None = None,
    adapters: Mapping[str, str | Path] | Sequence[str | Path] = (),
    trust_remote_code: bool = False,
) -> Evaluation:
    """Evaluate a model and say what came of it.

    Args:
        model: a directory in the hub's format.
        overrides: "data.eval=FILE", "tasks=gsm8k", and more of `EvalRecipe`.
        lm_eval: tasks of lm-eval to run, too; without data of one's own these alone.
        out: where all of it is written as JSON, a record a sample.
        adapters: adapters to put on the model, each of which is measured, one after another.
        trust_remote_code: whether Python code that comes with the checkpoint may run.
    """
    recipe = read_eval_recipe(overrides)
    if not recipe.data.eval and not lm_eval:
        raise RecipeError("nothing to measure on is named", where="data.eval", do="Give data.eval=FILE.")
    _refuse_nowhere(out)
    loaded = LanguageModel.load(model, adapters=adapters, trust_remote_code=trust_remote_code)
    _place(loaded, recipe.run)
    results = [] if loaded.adapters else _measured(loaded, recipe, lm_eval)
    for name in loaded.adapters:
        with loaded.wearing(name) as worn:
            results += [replace(result, adapter=name) for result in _measured(worn, recipe, lm_eval)]
    found = Evaluation(tuple(results))
    show(found)
    if out is not None:
        found.save(out)
    return found


def score_rows(model: str | Path, overrides: Sequence[str] = (), *, out: str | Path | None = None) -> Evaluation:
    """Score rows by a density and say what came of it; see `danlu.scoring.score`.

    Args:
        model: the density's directory, or its run's.
        overrides: "data.eval=FILE", and fields of its method.
        out: where all of it is written as JSON, a record a row.
    """
    from danlu.scoring import score

    _refuse_nowhere(out)
    found = score(model, overrides)
    show(found)
    if out is not None:
        found.save(out)
    return found


def _refuse_nowhere(out: str | Path | None) -> None:
    if out is not None and not Path(out).expanduser().parent.is_dir():
        raise RecipeError("its folder does not exist", where=out, do="Make it, or name another.")


def _measured(loaded: LanguageModel, recipe: EvalRecipe, lm_eval: Sequence[str]) -> list[Result]:
    results: list[Result] = []
    if recipe.data.eval:
        with _progress() as heard:
            results += evaluate(loaded, recipe.data, tasks=recipe.task_names, run=recipe.run, progress=heard).results
    if lm_eval:
        results += _harness(loaded, recipe, lm_eval).results
    return results


def _harness(loaded: LanguageModel, recipe: EvalRecipe, tasks: Sequence[str]) -> Evaluation:
    from danlu.evaluation.lm_eval import Answerer, run_lm_eval

    template = chat_template(loaded.tokenizer, recipe.data.chat_template)
    answerer = Answerer(loaded, template, recipe.data.context, recipe.run.pack_tokens, recipe.run.max_active)
    run = recipe.run
    return run_lm_eval(
        answerer,
        tasks,
        limit=recipe.data.limit,
        num_fewshot=run.num_fewshot,
        as_chat=run.as_chat,
        include=run.include,
    )


def _place(model: LanguageModel, run: EvalRun) -> None:
    device = Device.choose(run.device, None)
    precision = run.precision or ("fp32" if device.kind == "cpu" else "bf16")
    prepare(model.model, device, PRECISIONS[precision], compiled=False)


@contextmanager
def _progress() -> Iterator[Heard]:
    """How far it is: a bar on a terminal, nothing elsewhere."""
    if not sys.stdout.isatty():
        yield lambda *_: None
        return
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bars:
        known = {}

        def heard(task: str, done: int, total: int) -> None:
            if task not in known:
                known[task] = bars.add_task(task, total=total)
            bars.update(known[task], completed=done)

        yield heard


def show(found: Evaluation) -> None:
    """Say what was found."""
    if not sys.stdout.isatty():
        for result in found.results:
            print(json_line(result.row))
        return
    several = any(result.adapter is not None for result in found.results)
    table = Table(*(["adapter"] if several else []), "task", "metric", "value", box=None)
    for result in found.results:
        of = [result.adapter or "", result.task] if several else [result.task]
        for name, value in result.metrics.items():
            table.add_row(*of, name.replace("_", " "), f"{value:.4f}")
        for name, value in result.counts.items():
            if value or name == "samples":
                table.add_row(*of, name.replace("_", " "), f"{value:,}")
    Rich().print(table)
