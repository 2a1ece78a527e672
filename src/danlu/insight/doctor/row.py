"""What the doctor sees of one row of data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from danlu.data.document import Document, Tokens
from danlu.errors import DataError


@dataclass(frozen=True, eq=False)
class Row:
    """A row as it stands in its file, as it was understood, and as it would be trained on.

    Attributes:
        where: ``file:line``.
        shape: the shape it was recognised by, as "messages"; empty when it could not be read.
        document: what it says, unless it could not be read.
        ids: its m tokens, unless it could not be encoded.
        weights: how much each token counts as a target, ``>= 0``; None is one for all.
        fault: why it could not be read or encoded.
        raw: the record's bytes.
    """

    where: str
    shape: str = ""
    document: Document | None = None
    ids: Int64[np.ndarray, " m"] | None = None
    weights: Float32[np.ndarray, " m"] | None = None
    fault: DataError | None = None
    raw: bytes = b""


def rows_from(
    records: Iterable[tuple[bytes, str]],
    read: Callable[[bytes, str], tuple[str, Document]],
    encode: Callable[[Document, str], Tokens],
) -> Iterator[Row]:
    """Rows of records, one at a time; a record that cannot be read or encoded becomes a row with its fault.

    Args:
        records: the bytes of each, and their ``file:line``.
        read: recognises a record's shape.
        encode: makes tokens of a document.

    Example:
        >>> def read(raw, where):
        ...     raise DataError("the line is not JSON", where=where)
        >>> [row] = rows_from([(b"{", "a.jsonl:1")], read, encode=lambda document, where: document)
        >>> str(row.fault)
        'a.jsonl:1: the line is not JSON.'
    """
    for raw, where in records:
        shape, document = "", None
        try:
            shape, document = read(raw, where)
            tokens = encode(document, where)
        except DataError as fault:
            yield Row(where, shape, document, fault=fault, raw=raw)
        else:
            yield Row(where, shape, document, tokens.ids, tokens.weights, raw=raw)
