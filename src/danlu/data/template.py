"""How a row of a JSONL or Parquet file becomes the text of a document."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass

from danlu.errors import DataError, RecipeError, did_you_mean


@dataclass(frozen=True)
class Template:
    r"""Literal text and the names of fields, in turn: ``literal_0 field_0 literal_1 field_1 ...``.

    Example:
        >>> Template.parse("{question}\n{answer}").render({"question": "1 + 1?", "answer": "2"}, where="a.jsonl:1")
        '1 + 1?\n2'
    """

    pieces: tuple[tuple[str, str | None], ...]

    @classmethod
    def parse(cls, field: str) -> Template:
        """Read a recipe's `field`: the name of a field, or a template with names in braces (``{{`` is a brace).

        Raises:
            RecipeError: when it is neither.
        """
        if "{" not in field and "}" not in field:
            if not field:
                raise RecipeError("data.field is empty", do="Name the field that holds the text.")
            return cls((("", field),))
        try:
            parsed = list(string.Formatter().parse(field))
        except ValueError as fault:
            raise RecipeError(
                f"data.field {field!r} is no template ({fault})", do="Write a brace as {{ or }}."
            ) from None
        if any(name is not None and (not name or spec or conversion) for _, name, spec, conversion in parsed):
            raise RecipeError(f"data.field {field!r} has braces without a plain name", do="Write {name}, and no more.")
        pieces = tuple((literal, name) for literal, name, _, _ in parsed)
        if not any(name for _, name in pieces):
            raise RecipeError(f"data.field {field!r} names no field", do="Write {name} where a field's text goes.")
        return cls(pieces)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields it needs, each once."""
        return tuple(dict.fromkeys(name for _, name in self.pieces if name is not None))

    def render(self, row: Mapping[str, object], where: str) -> str:
        """The text of one row.

        Args:
            row: the fields of the row; those that are not named are left alone.
            where: the row's ``file:line``, for the error.

        Raises:
            DataError: when a field is missing or is not text.
        """
        parts = []
        for literal, name in self.pieces:
            parts.append(literal)
            if name is None:
                continue
            value = row.get(name)
            if not isinstance(value, str):
                raise _fault(name, row, where)
            parts.append(value)
        return "".join(parts)


def _fault(name: str, row: Mapping[str, object], where: str) -> DataError:
    if name not in row:
        return DataError(f"the row has no field '{name}'", where=where, do=did_you_mean(name, row))
    kind = "null" if row[name] is None else type(row[name]).__name__
    return DataError(
        f"field '{name}' is {kind}, not a string", where=where, do="Make it a string or name another field."
    )
