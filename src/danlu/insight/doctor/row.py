"""What the doctor sees of one row of data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from danlu.data.document import Document
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
        answers: where each answer begins, if its tokens are a prompt and its answers, end to end.
    """

    where: str
    shape: str = ""
    document: Document | None = None
    ids: Int64[np.ndarray, " m"] | None = None
    weights: Float32[np.ndarray, " m"] | None = None
    fault: DataError | None = None
    raw: bytes = b""
    answers: tuple[int, ...] = ()
