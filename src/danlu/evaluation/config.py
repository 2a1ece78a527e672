"""What `danlu eval` may be told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from danlu.config import Config
from danlu.reading import Reader, set_override


class EvalData(Config):
    """What to measure on."""

    eval: str | tuple[str, ...] = ()
    """Files, globs (`**` too) or folders, in any form that can be trained on."""
    fields: dict[str, str] | None = None
    """Which of a row's fields is what, where its form is not known by its shape."""
    field: str | None = None
    r"""The field that holds a text, or a template of fields, as "{question}\n{answer}", for rows that are texts."""
    chat_template: str | None = None
    """`chatml` or the path of a template, instead of the checkpoint's own."""
    train_on: str | tuple[str, ...] = "assistant"
    """What the loss is measured on of a conversation, as in training: assistant, tool, user, system, all, last."""
    add_bos: bool = True
    """Begin texts with the tokenizer's first token, if it has one; a template does as it does."""
    add_eos: bool = True
    """End texts with the tokenizer's last token, if it has one; a template does as it does."""
    context: int | None = Field(None, ge=1)
    """The most targets that are seen at once, longer samples being cut; by default as many as the model has positions
    for."""
    limit: int | None = Field(None, ge=1)
    """Only the first so many samples; of lm-eval's tasks, of each."""
    cache: str | None = None
    """Folder for what is unpacked; by default the environment's DANLU_CACHE, else ~/.cache/danlu/tokens."""


class EvalRun(Config):
    """How it is measured."""

    device: str = "auto"
    """auto, cpu, cuda, or another accelerator torch knows."""
    precision: Literal["fp32", "bf16"] | None = None
    """Of activations and products; by default fp32 on a CPU and bf16 elsewhere."""
    pack_tokens: int = Field(4096, ge=1)
    """Tokens that go through at once: a matter of memory, which changes no result."""
    max_active: int = Field(32, ge=1)
    """Answers that are written at once: a matter of memory, too."""
    max_new_tokens: int = Field(512, ge=1)
    """The longest answer."""
    as_chat: bool = False
    """Whether lm-eval puts its questions as chats, by the template."""
    include: str | None = None
    """A folder with more tasks than lm-eval brings."""
    num_fewshot: int | None = Field(None, ge=0)
    """Examples in each of lm-eval's prompts; each task's own number by default."""


class EvalRecipe(Config):
    """An evaluation."""

    data: EvalData = EvalData()
    """What to measure on."""
    tasks: str | tuple[str, ...] = "loss"
    """What is measured: loss, and the names of extractors (danlu list extractors) by which answers are compared."""
    run: EvalRun = EvalRun()
    """How it is measured."""

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks one by one."""
        return tuple(self.tasks.split(",")) if isinstance(self.tasks, str) else self.tasks


def read_eval_recipe(overrides: Sequence[str]) -> EvalRecipe:
    """An evaluation from "dotted.key=value", the value as YAML.

    Raises:
        RecipeError: for whatever cannot be meant, by its place.
    """
    raw: dict[str, Any] = {}
    places = {set_override(raw, text): f"override {text}" for text in overrides}
    read = Reader(places, "danlu eval").config(EvalRecipe, raw, ())
    assert isinstance(read, EvalRecipe)
    return read
