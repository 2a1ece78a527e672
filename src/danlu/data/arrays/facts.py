"""What rows are, without the rows: all that one who makes more of them has to know."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

from danlu.data.arrays.rows import Arrays, Kind


@dataclass(frozen=True)
class Facts:
    """What the rows of some data are; attributes as of `Arrays`, which has them with the rows."""

    shape: tuple[int, ...]
    kind: Kind
    origin: str
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    features: tuple[str, ...]
    levels: int | None
    label: str = ""

    @staticmethod
    def of(arrays: Arrays) -> Facts:
        """Those of some rows."""
        a = arrays
        return Facts(tuple(a.shape), a.kind, a.origin, a.columns, a.classes, a.features, a.levels, a.label)

    @property
    def size(self) -> int:
        """How many numbers a row has."""
        return math.prod(self.shape)

    def as_json(self) -> dict[str, Any]:
        """As plain data that `from_json` reads back."""
        return asdict(self)

    @staticmethod
    def from_json(told: Mapping[str, Any]) -> Facts:
        """The same from plain data.

        Raises:
            KeyError, TypeError, ValueError: when it is something else.
        """
        if told["kind"] not in get_args(Kind):
            raise ValueError(f"rows are of no kind that is known: {told['kind']!r}")
        columns, classes, features = (tuple(map(str, told[name])) for name in ("columns", "classes", "features"))
        levels = told["levels"]
        return Facts(
            tuple(int(n) for n in told["shape"]),
            told["kind"],
            str(told["origin"]),
            columns,
            classes,
            features,
            None if levels is None else int(levels),
            str(told.get("label", "")),
        )
