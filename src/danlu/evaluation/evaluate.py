"""An evaluation from beginning to end: samples read once, each task asked of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice

from danlu.data.chat import Chat
from danlu.data.document import Document
from danlu.errors import DataError, RecipeError, did_you_mean
from danlu.evaluation.answers import Asker, judge
from danlu.evaluation.config import EvalData, EvalRun
from danlu.evaluation.examples import read_examples
from danlu.evaluation.held_out import HeldOut
from danlu.evaluation.result import Evaluation, Result
from danlu.generate import LanguageModel
from danlu.generate.chat_session import chat_template
from danlu.registry import exported, lookup

LOSS = "loss"
Progress = Callable[[str, int, int], None]
"""Hears of a task, how many samples are done, and how many there are."""


def evaluate(
    model: LanguageModel,
    data: EvalData,
    *,
    tasks: Iterable[str] = (LOSS,),
    run: EvalRun | None = None,
    progress: Progress = lambda *_: None,
) -> Evaluation:
    """Measure a model on data it was not trained on.

    Args:
        model: what is measured, wherever it is.
        data: what on.
        tasks: "loss", and names of extractors by which written answers are compared with the samples'.
        run: packs and answers at a time, the longest answer; device and precision are the caller's.
        progress: hears how far it is.

    Raises:
        RecipeError: when there is no such task.
        DataError: when a sample cannot be read, or a task finds nothing to measure.
    """
    wanted, run = list(dict.fromkeys(tasks)), run or EvalRun()
    _check(wanted)
    longest = model.model.longest
    if data.context is not None and longest is not None and data.context > longest:
        raise RecipeError(f"data.context ({data.context}) exceeds the model's {longest} positions", do="Lower it.")
    examples = list(islice(read_examples(data), data.limit))
    if not examples:
        raise DataError("there is no sample", where="data.eval", do="Name files that hold some.")
    template = chat_template(model.tokenizer, data.chat_template)
    learned = (data.train_on,) if isinstance(data.train_on, str) else data.train_on
    chat = Chat(model.tokenizer, template, learned, data.add_bos, data.add_eos)
    found: dict[str, Result] = {}
    if LOSS in wanted:
        context = data.context or model.model.longest
        tally = HeldOut(model.tokenizer, chat.encode, context)
        found[LOSS] = tally.measure(model.model, _counted(examples, progress), run.pack_tokens)
    if extracting := [task for task in wanted if task != LOSS]:
        asker = Asker(model, template, replace(chat, train_on=("assistant",)).encode)
        questions, left_out = asker.questions(examples, run.max_new_tokens)
        done: set[int] = set()

        def answered(question: int) -> None:
            done.add(question)
            progress("answers", len(done), len(questions))

        answers = asker.answers(
            questions, max_new_tokens=run.max_new_tokens, max_active=run.max_active, answered=answered
        )
        left_out |= {"unfinished": asker.unfinished}
        for task in extracting:
            found[task] = judge(task, lookup("extractor", task)(), questions, answers, left_out)
    return Evaluation(tuple(found[task] for task in wanted))


def _check(tasks: list[str]) -> None:
    known = [LOSS, *(entry.name for entry in exported("extractor"))]
    for task in tasks:
        if task not in known:
            raise RecipeError(f"there is no task '{task}'", where="tasks", do=did_you_mean(task, known))
    if not tasks:
        raise RecipeError("nothing is to be measured", where="tasks", do=f"Known: {', '.join(sorted(known))}.")


def _counted(examples: list[tuple[str, Document]], progress: Progress) -> Iterable[tuple[str, Document]]:
    for done, example in enumerate(examples, 1):
        progress(LOSS, done, len(examples))
        yield example
