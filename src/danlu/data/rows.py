"""From the rows of a chunk to documents, each by itself, so that a faulty one spoils no other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from danlu.data import columnar
from danlu.data.chunks import Chunk, first_line
from danlu.data.document import (
    Completion,
    Conversation,
    Document,
    Excerpt,
    Judged,
    LearnsFrom,
    Path,
    Preference,
    Text,
    Tokens,
)
from danlu.data.shapes import not_answers, recognise
from danlu.data.template import Template
from danlu.errors import DataError

TEXT = "text"
"""The shape of what is text without more ado."""


@dataclass(frozen=True)
class Reader:
    """What makes a document of a row.

    Attributes:
        template: makes a text of its fields; without one, what the row is shows in its shape.
        fields: names in a row for the names that its shape would have, in pairs.
        learns_from: what rows are to be: sequences, or prompts with their answers. Blank lines are neither.
    """

    template: Template | None = None
    fields: tuple[tuple[str, str], ...] = ()
    learns_from: LearnsFrom = "sequence"

    def read(self, chunk: Chunk) -> Iterator[tuple[str, Document] | DataError]:
        """The shape and document of each record in order; of one that is none, what is wrong with it.

        Raises:
            DataError: when the file cannot be read at all.
        """
        for row, where in zip(self._rows(chunk), chunk.place.each(chunk.num_documents), strict=False):
            try:
                yield self._document(row, where, chunk.kind)
            except DataError as fault:
                yield fault

    def _rows(self, chunk: Chunk) -> Iterator[Any]:
        if chunk.kind in ("parquet", "arrow"):
            return columnar.rows(chunk, None if self.template is None else self.template.fields)
        return iter(chunk.records())

    def _document(self, row: Any, where: str, kind: str) -> tuple[str, Document]:
        if isinstance(row, UnicodeDecodeError):
            raise DataError("a text of the row is not UTF-8", where=where, do="Write the column as UTF-8.")
        if isinstance(row, bytes):
            text = _decode(row, where)
            if not text or (text.isspace() and kind != "text"):
                return TEXT, Text("")
            if kind == "text":
                return self._text(text, where)
            row = _parse(text, where, kind)
        if self.template is not None:
            return self._text(self.template.render(row, where), where)
        return recognise(row, where, dict(self.fields) or None, learns_from=self.learns_from)

    def _text(self, text: str, where: str) -> tuple[str, Document]:
        if self.learns_from == "answers":
            raise not_answers(TEXT, where)
        return TEXT, Text(text)


def raw_rows(chunk: Chunk) -> list[Any]:
    """The rows as they are: an object where that can be had, else its text."""
    if chunk.kind in ("parquet", "arrow"):
        return [repr(row) if isinstance(row, Exception) else row for row in columnar.rows(chunk, None)]
    return [record.decode(errors="replace") for record in chunk.records()]


def content(document: Document) -> bytes:
    """What tells a document from others: of a text, its bytes.

    Raises:
        UnicodeEncodeError: when it has half of a surrogate pair.
    """
    if isinstance(document, Text):
        return document.text.encode()
    if isinstance(document, Tokens):
        weights = b"" if document.weights is None else document.weights.astype("<f4").tobytes()
        return document.ids.astype("<i8").tobytes() + weights
    if isinstance(document, Preference | Judged):
        said = [[_said(path) for path in document.paths.values()], document.values]
    else:
        said = _said(document)
    return json.dumps(said, ensure_ascii=False, default=_plain).encode()


def _said(path: Path) -> list[Any]:
    if isinstance(path, Completion):
        return [path.prompt, path.completion]
    if isinstance(path, Excerpt):
        return [path.before, path.text]
    return [[[message.as_dict(), message.weight] for message in path.messages], path.tools]


def texts(document: Document | Path) -> Iterator[str]:
    """What a tokenizer may learn from; of answers to one prompt, this as often as there are answers."""
    if isinstance(document, Preference | Judged):
        for path in document.paths.values():
            yield from texts(path)
    elif isinstance(document, Excerpt):
        yield from (document.before, document.text)
    elif isinstance(document, Text):
        yield document.text
    elif isinstance(document, Completion):
        yield from (document.prompt, document.completion)
    elif isinstance(document, Conversation):
        for message in document.messages:
            parts = [message.content] if isinstance(message.content, str) else message.content
            yield from (part if isinstance(part, str) else str(part.get("text", "")) for part in parts)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    return value.tolist() if isinstance(value, np.ndarray) else str(value)


def _decode(record: bytes, where: str) -> str:
    try:
        return record.decode()
    except UnicodeDecodeError as fault:
        path, _, line = where.rpartition(":")
        at = int(line) + record.count(b"\n", 0, fault.start)
        byte = f"byte 0x{record[fault.start]:02x}"
        raise DataError(f"{byte} is not UTF-8", where=f"{path}:{at}", do="Save the file as UTF-8.") from None


def _parse(line: str, where: str, kind: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as fault:
        raise DataError(f"the line is not JSON ({first_line(fault)})", where=where, do="Remove or repair it.") from None
    if isinstance(row, dict):
        return row
    if kind == "table":
        what = f"the row has {len(row)} cells, and the header another number"
        raise DataError(what, where=where, do="Remove or repair it.")
    what = f"the line is a JSON {type(row).__name__}, not an object"
    raise DataError(what, where=where, do='Write one object a line, as {"text": "..."}.')
