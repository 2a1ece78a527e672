"""From the `data` noun of a recipe to a tokenizer and corpora."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from danlu.data import store
from danlu.data.config import DataConfig
from danlu.data.corpus import Corpus
from danlu.data.files import resolve
from danlu.data.formats import read_chunks
from danlu.data.template import Template
from danlu.data.tokenizer import Tokenizer

TRAINING_BYTES = 64 << 20
"""How much text a tokenizer is trained on."""
_VERSION = 1


@dataclass(frozen=True)
class Data:
    """What a run learns from.

    Attributes:
        tokenizer: given, loaded or trained.
        train: samples to train on.
        held_out: samples to measure on, if any are wanted.
    """

    tokenizer: Tokenizer
    train: Corpus
    held_out: Corpus | None


def build_data(config: DataConfig, seed: int, tokenizer: Tokenizer | None = None) -> Data:
    """Read, encode and split what a recipe names.

    Args:
        config: the recipe's `data`.
        seed: decides which documents a fraction holds out.
        tokenizer: the model's own, in place of the recipe's.

    Raises:
        DataError: when the data cannot be read as it is.
        CheckpointError: when the tokenizer cannot be.
        RecipeError: when `field` is no template.
    """
    if tokenizer is None and config.tokenizer is not None:
        tokenizer = Tokenizer.load(config.tokenizer)
    chosen = tokenizer or train_tokenizer(config.train, config.field, config.vocab_size, config.cache)

    def corpus(files: str | list[str]) -> Corpus:
        return Corpus.open(
            files,
            chosen,
            context=config.context,
            field=config.field,
            cache=config.cache,
            workers=config.workers,
            add_bos=config.add_bos,
            add_eos=config.add_eos,
        )

    train = corpus(config.train)
    if config.held_out is None:
        return Data(chosen, train, None)
    if isinstance(config.held_out, float):
        return Data(chosen, *train.split(config.held_out, seed))
    return Data(chosen, train, corpus(config.held_out))


def train_tokenizer(
    files: str | Sequence[str], field: str, vocab_size: int, cache: str | Path | None = None
) -> Tokenizer:
    """A byte-level BPE of the first documents of some files, up to about `TRAINING_BYTES`.

    They include documents that a fraction holds out later. The result is kept in the cache under a hash of the text.

    Args:
        files: files, globs and folders.
        field: of JSONL and Parquet, the field that holds the text, or a template of fields.
        vocab_size: how large the vocabulary may become.
        cache: the cache's folder.

    Raises:
        DataError: when a file cannot be read.
    """
    texts = list(_first_texts(resolve(files), Template.parse(field)))
    state = hashlib.blake2b(repr((_VERSION, vocab_size, [len(text) for text in texts])).encode(), digest_size=16)
    for text in texts:
        state.update(text.encode())
    path = store.entry(store.cache_folder(cache), state.hexdigest())
    stored = store.read(path)
    if stored is not None:
        return Tokenizer.of_bpe(bytes(stored))
    tokenizer = Tokenizer.train_bpe(texts, vocab_size)
    store.write(path, [tokenizer.json])
    return tokenizer


def _first_texts(files: Sequence[Path], template: Template) -> Iterator[str]:
    """Whole chunks of documents until there is enough."""
    num_bytes = 0
    for chunk in read_chunks(files, template):
        yield from chunk.texts()
        num_bytes += sum(map(len, chunk.records))
        if num_bytes >= TRAINING_BYTES:
            return
