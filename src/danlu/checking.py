"""`danlu check`: what a recipe would learn from, and what is wrong with it, before anything is trained."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from danlu.build import model_tokenizer
from danlu.data import Collection, Documents, open_documents
from danlu.data.chunks import Chunk
from danlu.data.encoder import digest_of
from danlu.data.rows import content, raw_rows
from danlu.errors import DataError
from danlu.insight.doctor import Diagnosis, Row, examine
from danlu.reading import load_recipe
from danlu.recipe import Recipe

_SPREAD = 8
"""How many places of the files a sample of rows is taken from."""


def check(recipe: str | Path | Mapping[str, Any] | Recipe, *overrides: str, rows: int | None = None) -> Diagnosis:
    """Look at the data of a recipe; nothing is built, trained or written.

    Args:
        recipe: a path, a built-in name, a dictionary or a `Recipe`.
        overrides: "dotted.key=value".
        rows: look at so many of them, from several places of the files; None is all.

    Raises:
        DanluError: when the recipe cannot be meant, or a file not be read at all; what is wrong with rows is told in
            the diagnosis.
    """
    loaded = load_recipe(recipe, overrides)
    learns_from = loaded.method.learns_from
    documents = open_documents(loaded.data, loaded.run.seed, model_tokenizer(loaded), learns_from=learns_from)
    return diagnose(loaded, documents, rows)


def diagnose(recipe: Recipe, documents: Documents, rows: int | None = None) -> Diagnosis:
    """The same of data that are open."""
    data, tokenizer = recipe.data, documents.tokenizer
    each = None if rows is None else -(-rows // len(documents.train))
    train = (row for part in documents.train for measured, row in _rows(part, each) if not measured)
    if documents.held_out is not None:
        held_out = (row for _, row in _rows(documents.held_out, rows))
    else:  # the other side of a split, which is read once more, so that no row is kept
        split = [part for part in documents.train if part.rules.fraction]
        held_out = (row for part in split for measured, row in _rows(part, each) if measured)
    ends = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    special = {*tokenizer.special_ids, *ends}
    return examine(
        train,
        held_out,
        context=data.context,
        pack_tokens=recipe.run.pack_tokens,
        too_long=data.too_long,
        tokenizer_decode=tokenizer.decode,
        special_ids=special,
        end_ids=special if data.add_eos else (),
        rows_in_all=sum(part.num_documents for part in documents.train),
    )


def _rows(collection: Collection, limit: int | None) -> Iterator[tuple[bool, Row]]:
    """Rows, each with whether it is held out."""
    chunks: Sequence[int] = range(len(collection.chunks))
    share = limit
    if limit is not None:
        chunks = sorted({round(at) for at in np.linspace(0, len(chunks) - 1, min(_SPREAD, len(chunks)))})
        share = -(-limit // max(len(chunks), 1))
    for number in chunks:
        yield from itertools.islice(_rows_of_chunk(collection, number), share)


def _rows_of_chunk(collection: Collection, number: int) -> Iterator[tuple[bool, Row]]:
    chunk, encoder = collection.chunks[number], collection.encoder
    places, faults = chunk.place.each(chunk.num_documents), _Faults(chunk)
    for record, read in enumerate(encoder.reader.read(chunk)):
        where, shape, document = places[record], "", None
        try:
            if isinstance(read, DataError):
                raise read
            shape, document = read
            tokens = encoder.encode(document, where)
            held_out = collection.rules.holds_out(digest_of(content(document)))
            yield held_out, Row(where, shape, document, tokens.ids, tokens.weights, answers=tokens.answers)
        except DataError as fault:
            yield False, Row(where, shape, document, fault=fault, raw=faults.add(record, fault))
    collection.set_aside(number, faults.found)


class _Faults:
    """Rows of a chunk that cannot be used; the rows are read once more only if there is one."""

    def __init__(self, chunk: Chunk) -> None:
        self._chunk = chunk
        self._rows: list[Any] = []
        self.found: list[tuple[int, DataError]] = []

    def add(self, record: int, fault: DataError) -> bytes:
        """Remember one; give its bytes."""
        self._rows = self._rows or raw_rows(self._chunk)
        self.found.append((record, fault))
        row = self._rows[record]
        return row.encode() if isinstance(row, str) else repr(row).encode()
