"""The `data` noun of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from danlu.config import Config
from danlu.data.cutting import TooLong
from danlu.data.tokenizer import SMALLEST_VOCABULARY

Fraction = Annotated[float, Field(gt=0, lt=1)]
Learned = Literal["assistant", "tool", "user", "system", "all", "last"]


class Part(Config):
    """Files of a mixture, and how much is drawn of them."""

    files: str | list[str]
    """Files, globs (`**` too), folders or a hub data set."""
    weight: float | None = Field(default=None, gt=0)
    """How often it is drawn, in proportion to the others' weights; by default as many as its documents."""
    seed: int | None = None
    """Of its order; null is the run's."""
    epochs: int | None = Field(default=None, ge=1)
    """Passes over it, after which the others go on without it; null is the run's."""
    field: str | None = None
    """As `data.field`, which holds where this is null."""
    fields: dict[str, str] | None = None
    """As `data.fields`, which holds where this is null."""


class DataConfig(Config):
    """What to learn from, and how much of it makes one update."""

    train: str | list[str | Part]
    """Files, globs (`**` too), folders or hub data sets (`org/name:split`) to train on: text, JSON lines or arrays,
    CSV, TSV (each also as .gz or .zst), Parquet or Arrow. With a part among them, each is a part of a mixture."""
    held_out: str | list[str] | Fraction | None = None
    """What to measure on and never train on: files, globs or folders, or a fraction of the documents of `train`."""
    held_out_samples: int = Field(default=2000, ge=1)
    """Of a fraction: how many samples are measured, the first of the files; the others are still not trained on."""
    field: str | None = None
    r"""Of rows: the field that holds the text, or a template of fields, as "{question}\n{answer}"; null: their shape
    tells what they are."""
    fields: dict[str, str] | None = None
    """Of rows whose fields have other names than their shape's: the shape's name for each of the row's."""
    chat_template: str | None = None
    """What renders conversations: chatml, or the path of a .jinja file; null is the tokenizer's own."""
    train_on: tuple[Learned, ...] = Field(default=("assistant",), min_length=1)
    """What is learned of a conversation: messages by role, `all` tokens, or the `last` message of an assistant."""
    tokenizer: str | None = None
    """A directory with a tokenizer in the hub's format; null trains a byte-level BPE on `train`."""
    vocab_size: int = Field(default=8192, ge=SMALLEST_VOCABULARY)
    """How large the vocabulary of a BPE that is trained may become."""
    context: int = Field(ge=1)
    """The most tokens of a document that are seen at once; of a pair, of its prompt with its longer answer."""
    too_long: TooLong = "split"
    """What becomes of a longer document: `split` into several samples, `truncate_left` (its end is kept),
    `truncate_right` (its beginning is kept), or `refuse`. Of a pair the prompt loses its beginning, or answers lose
    their ends; it is never split, but refused."""
    quarantine: str | None = None
    """A folder to set rows aside in that cannot be used, so that the run goes on with the rest; null refuses them."""
    step_samples: int | None = Field(default=None, ge=1)
    """Samples that make one update; this or `step_tokens`."""
    step_tokens: int | None = Field(default=None, ge=1)
    """Samples make one update, in order, while they have no more targets than this together; this or `step_samples`."""
    shuffle: bool = True
    """Draw each epoch in an order of its own, large data some dozens of megabytes from all over it at a time; false
    keeps the order of the files."""
    workers: int = Field(default=0, ge=0)
    """Processes that encode documents; 0 is as many as there are cores. Little text is encoded by one."""
    cache: str | None = None
    """Folder of the token cache; by default the environment's DANLU_CACHE, else ~/.cache/danlu/tokens."""
    add_bos: bool = True
    """Begin every text with the tokenizer's first token, if it has one."""
    add_eos: bool = True
    """End every text with the tokenizer's last token, if it has one."""

    @property
    def parts(self) -> list[Part]:
        """What is trained on, as the parts of a mixture; names alone are one part together."""
        if isinstance(self.train, str):
            return [Part(files=self.train)]
        names = [part for part in self.train if isinstance(part, str)]
        if len(names) == len(self.train):
            return [Part(files=names)]
        return [Part(files=part) if isinstance(part, str) else part for part in self.train]

    @model_validator(mode="after")
    def _one_step(self) -> DataConfig:
        if (self.step_samples is None) == (self.step_tokens is None):
            raise ValueError(
                "a step is so many samples or so many tokens: set exactly one of step_samples and step_tokens"
            )
        return self

    @model_validator(mode="after")
    def _one_scale(self) -> DataConfig:
        weights = [part.weight is None for part in self.parts]
        if any(weights) and not all(weights):
            raise ValueError("some parts of train have a weight and some have none: give one to each, or to none")
        return self

    @model_validator(mode="after")
    def _one_reading(self) -> DataConfig:
        readings = [(self.field, self.fields), *((part.field, part.fields) for part in self.parts)]
        for field, fields in readings:
            if field is not None and fields is not None:
                raise ValueError("field makes a text of each row, and fields tell its shape: set one of them")
        return self
