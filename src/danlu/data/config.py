"""The `data` noun of a recipe."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from danlu.config import Config
from danlu.data.tokenizer import SMALLEST_VOCABULARY

Fraction = Annotated[float, Field(gt=0, lt=1)]


class DataConfig(Config):
    """What to learn from, and how much of it makes one update."""

    train: str | list[str]
    """Files, globs (`**` too) or folders to train on: text, JSONL or Parquet."""
    held_out: str | list[str] | Fraction | None = None
    """What to measure on and never train on: files, globs or folders, or a fraction of the documents of `train`."""
    field: str = "text"
    r"""Of JSONL and Parquet: the field that holds the text, or a template of fields, as "{question}\n{answer}"."""
    tokenizer: str | None = None
    """A directory with a tokenizer in the hub's format; null trains a byte-level BPE on `train`."""
    vocab_size: int = Field(default=8192, ge=SMALLEST_VOCABULARY)
    """How large the vocabulary of a BPE that is trained may become."""
    context: int = Field(ge=1)
    """The most tokens of a document that are seen at once; longer documents are cut."""
    step_samples: int | None = Field(default=None, ge=1)
    """Samples that make one update; this or `step_tokens`."""
    step_tokens: int | None = Field(default=None, ge=1)
    """Samples make one update, in order, while they have no more targets than this together; this or `step_samples`."""
    shuffle: bool = True
    """Draw each epoch in an order of its own; false keeps the order of the files."""
    workers: int = Field(default=0, ge=0)
    """Processes that encode documents; 0 is as many as there are cores. Little text is encoded by one."""
    cache: str | None = None
    """Folder of the token cache; by default the environment's DANLU_CACHE, else ~/.cache/danlu/tokens."""
    add_bos: bool = True
    """Begin every document with the tokenizer's first token, if it has one."""
    add_eos: bool = True
    """End every document with the tokenizer's last token, if it has one."""

    @model_validator(mode="after")
    def _one_step(self) -> DataConfig:
        if (self.step_samples is None) == (self.step_tokens is None):
            raise ValueError(
                "a step is so many samples or so many tokens: set exactly one of step_samples and step_tokens"
            )
        return self
