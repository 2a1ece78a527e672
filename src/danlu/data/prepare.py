"""From the `data` noun of a recipe to a tokenizer, and to what is trained and measured on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from danlu.data import store
from danlu.data.chat import Chat
from danlu.data.chat_template import ChatTemplate, resolve_template
from danlu.data.collection import Collection
from danlu.data.config import DataConfig, Part
from danlu.data.corpus import Corpus
from danlu.data.cutting import Rules
from danlu.data.document import LearnsFrom
from danlu.data.encoder import Encoder
from danlu.data.files import resolve
from danlu.data.index import index
from danlu.data.mixture import Joined, Mixture, Portion
from danlu.data.rows import Reader, texts
from danlu.data.source import DataSource
from danlu.data.template import Template
from danlu.data.tokenizer import Tokenizer
from danlu.errors import DataError

TRAINING_BYTES = 64 << 20
"""How much text a tokenizer is trained on."""
_VERSION = 1


@dataclass(frozen=True)
class Documents:
    """What a recipe names, indexed; nothing is encoded yet.

    Attributes:
        tokenizer: given, loaded or trained.
        train: each part of what is trained on.
        held_out: files of their own to measure on, if there are any.
    """

    tokenizer: Tokenizer
    train: tuple[Collection, ...]
    held_out: Collection | None


@dataclass(frozen=True)
class Data:
    """What a run learns from.

    Attributes:
        documents: what it was made of.
        tokenizer: given, loaded or trained.
        train: what to train on, encoded as it is needed.
        held_out: samples to measure on, if any are wanted.
    """

    documents: Documents
    tokenizer: Tokenizer
    train: Collection | Mixture
    held_out: Corpus | Joined | None

    def source(self, config: DataConfig, *, seed: int, epochs: int | None = None) -> DataSource:
        """What a run draws its steps from.

        Args:
            config: what the data were made of.
            seed: decides the order.
            epochs: passes over the data; None is without end.
        """
        stream = self.train.stream(seed=seed, shuffle=config.shuffle, epochs=epochs)
        return DataSource(stream, step_samples=config.step_samples, step_tokens=config.step_tokens)


def open_documents(
    config: DataConfig, seed: int, tokenizer: Tokenizer | None = None, *, learns_from: LearnsFrom = "sequence"
) -> Documents:
    """Index what a recipe names.

    Args:
        config: the recipe's `data`.
        seed: decides which documents a fraction holds out.
        tokenizer: the model's own, in place of the recipe's.
        learns_from: what the recipe's method takes; rows that are something else are refused.

    Raises:
        DataError: when the data cannot be read as it is.
        CheckpointError: when the tokenizer cannot be.
        RecipeError: when `field` is no template.
    """
    if tokenizer is None and config.tokenizer is not None:
        tokenizer = Tokenizer.load(config.tokenizer)
    chosen = tokenizer or _trained_tokenizer(config, learns_from)
    fraction = config.held_out if isinstance(config.held_out, float) else 0.0
    rules = Rules(config.context, config.too_long, fraction, seed if fraction else 0)
    parts = config.parts
    train = tuple(_collection(config, part, chosen, rules, learns_from, len(parts)) for part in parts)
    if config.held_out is None or isinstance(config.held_out, float):
        return Documents(chosen, train, None)
    own = Rules(config.context, config.too_long)
    return Documents(chosen, train, _collection(config, Part(files=config.held_out), chosen, own, learns_from))


def build_data(
    config: DataConfig, seed: int, tokenizer: Tokenizer | None = None, *, learns_from: LearnsFrom = "sequence"
) -> Data:
    """Index what a recipe names, and encode what is to be measured on.

    Args:
        config: the recipe's `data`.
        seed: decides which documents a fraction holds out.
        tokenizer: the model's own, in place of the recipe's.
        learns_from: what the recipe's method takes: samples are a `Sample` or an `Answers` each.

    Raises:
        DataError: when what is measured on cannot be read as it is.
        CheckpointError, RecipeError: as `open_documents`.
    """
    documents = open_documents(config, seed, tokenizer, learns_from=learns_from)
    parts, collections = config.parts, documents.train
    portions = [
        Portion(made, part.weight or made.num_documents, part.seed, part.epochs)
        for part, made in zip(parts, collections, strict=True)
    ]
    train = collections[0] if parts == [Part(files=parts[0].files)] else Mixture(portions)
    held_out: Corpus | Joined | None = None
    if documents.held_out is not None:
        held_out = documents.held_out.whole()
        documents.held_out.close()
    if isinstance(config.held_out, float):
        held_out = _held_out(collections, config.held_out_samples)
    return Data(documents, documents.tokenizer, train, held_out)


def build_encoder(
    tokenizer: Tokenizer,
    *,
    field: str | None = None,
    fields: Mapping[str, str] | None = None,
    chat_template: str | None = None,
    train_on: Sequence[str] = ("assistant",),
    add_bos: bool = True,
    add_eos: bool = True,
    learns_from: LearnsFrom = "sequence",
) -> Encoder:
    """What makes tokens of rows, from what a recipe says of them; see `DataConfig` and `Reader`.

    Raises:
        RecipeError: when `field` is no template.
        DataError: when the chat template is not sound.
        UnsupportedError: when it cannot be told which one is meant.
    """
    if field is not None:
        return Encoder(tokenizer, add_bos, add_eos, Reader(Template.parse(field), learns_from=learns_from))
    if chat_template is None:
        template = ChatTemplate.of(tokenizer.files, "tokenizer")
    else:
        template = resolve_template(chat_template, tokenizer)
    chat = Chat(tokenizer, template, tuple(train_on), add_bos, add_eos)
    reader = Reader(fields=tuple((fields or {}).items()), learns_from=learns_from)
    return Encoder(tokenizer, add_bos, add_eos, reader, chat)


def _collection(
    config: DataConfig, part: Part, tokenizer: Tokenizer, rules: Rules, learns_from: LearnsFrom, parts: int = 1
) -> Collection:
    field, fields = _reading(config, part)
    encoder = build_encoder(
        tokenizer,
        field=field,
        fields=fields,
        chat_template=config.chat_template,
        train_on=config.train_on,
        add_bos=config.add_bos,
        add_eos=config.add_eos,
        learns_from=learns_from,
    )
    workers = -(-(config.workers or os.cpu_count() or 1) // parts)  # each part has its own
    return Collection.open(
        part.files, encoder, rules, cache=config.cache, workers=workers, quarantine=config.quarantine
    )


def _held_out(collections: Sequence[Collection], limit: int) -> Corpus | Joined:
    """The first samples of the other side, of each part as many as it has documents for."""
    total = sum(made.num_documents for made in collections)
    sides = [made.held_out() for made in collections]
    if len(sides) == 1:
        return sides[0].whole(limit)
    shares = [max(1, round(limit * side.num_documents / total)) for side in sides]
    corpora = [side.whole(share, may_be_empty=True) for side, share in zip(sides, shares, strict=True)]
    found = [corpus for corpus in corpora if len(corpus)]
    if not found:
        sides[0].check_samples()
    return Joined(found)


def _trained_tokenizer(config: DataConfig, learns_from: LearnsFrom) -> Tokenizer:
    parts = [(part.files, *_reading(config, part)) for part in config.parts]
    return _trained(parts, config.vocab_size, config.cache, learns_from)


def _reading(config: DataConfig, part: Part) -> tuple[str | None, Mapping[str, str] | None]:
    """The `field` and `fields` that hold for a part."""
    own = part.field is not None or part.fields is not None
    return (part.field, part.fields) if own else (config.field, config.fields)


def train_tokenizer(
    files: str | Sequence[str],
    field: str | None,
    vocab_size: int,
    cache: str | Path | None = None,
    fields: Mapping[str, str] | None = None,
) -> Tokenizer:
    """A byte-level BPE of the first documents of some files, up to about `TRAINING_BYTES`.

    They include documents that a fraction holds out later. The result is kept in the cache under a hash of the text.

    Args:
        files: files, globs and folders.
        field: of rows, the field that holds the text, or a template of fields; None: their shape tells.
        vocab_size: how large the vocabulary may become.
        cache: the cache's folder.
        fields: of rows whose fields have other names than their shape's.

    Raises:
        DataError: when a file cannot be read.
    """
    return _trained([(files, field, fields)], vocab_size, cache)


def _trained(
    parts: Sequence[tuple[str | Sequence[str], str | None, Mapping[str, str] | None]],
    vocab_size: int,
    cache: str | Path | None,
    learns_from: LearnsFrom = "sequence",
) -> Tokenizer:
    """The same of several parts, of each an equal share: its files, `field` and `fields`."""
    folder = store.cache_folder(cache)
    read: list[str] = []
    for files, field, fields in parts:
        template = None if field is None else Template.parse(field)
        reader = Reader(template, tuple((fields or {}).items()), learns_from)
        read += _first_texts(resolve(files), reader, folder, TRAINING_BYTES // len(parts))
    state = hashlib.blake2b(repr((_VERSION, vocab_size, [len(text) for text in read])).encode(), digest_size=16)
    for text in read:
        state.update(text.encode())
    path = store.entry(folder, state.hexdigest())
    stored = store.read(path)
    if stored is not None:
        return Tokenizer.of_bpe(bytes(stored))
    tokenizer = Tokenizer.train_bpe(read, vocab_size)
    store.write(path, [tokenizer.json])
    return tokenizer


def _first_texts(files: Sequence[Path], reader: Reader, folder: Path, enough: int) -> Iterator[str]:
    """Whole chunks of documents until there is enough; rows that are none are told of when they are encoded."""
    num_bytes = 0
    for chunk in index(files, folder):
        for found in reader.read(chunk):
            if not isinstance(found, DataError):
                yield from filter(_is_sound, texts(found[1]))
        num_bytes += chunk.num_bytes
        if num_bytes >= enough:
            return


def _is_sound(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False
