"""The samples to measure on, one by one, read as training reads them."""

from __future__ import annotations

from collections.abc import Iterator

from danlu.data.document import Document, Text
from danlu.data.files import resolve
from danlu.data.index import index
from danlu.data.rows import Reader
from danlu.data.store import cache_folder
from danlu.data.template import Template
from danlu.errors import DataError
from danlu.evaluation.config import EvalData


def read_examples(data: EvalData) -> Iterator[tuple[str, Document]]:
    """Each sample with its ``file:line``; blank lines are none.

    Raises:
        DataError: when a file or a row cannot be read.
    """
    template = None if data.field is None else Template.parse(data.field)
    reader = Reader(template, tuple((data.fields or {}).items()))
    for chunk in index(resolve(data.eval), cache_folder(data.cache)):
        for record, found in enumerate(reader.read(chunk)):
            if isinstance(found, DataError):
                raise found
            if found[1] != Text(""):
                yield chunk.place.of(record), found[1]
