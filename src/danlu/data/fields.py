"""What the fields of a row hold, read as what they should be; where they are not, the fault says what they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from danlu.errors import DataError

Row = Mapping[str, Any]

LARGEST = 1 << 31
"""Numbers of a row, by their size, are below it."""


def wrong_kind(name: str, value: object, wanted: str, where: str) -> DataError:
    """The fault of a value that is not what is wanted."""
    kinds = {bool: "a truth value", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    kind = "null" if value is None else kinds.get(type(value), type(value).__name__)
    nested = isinstance(value, str) and value.lstrip()[:1] in ("[", "{")
    do = "It looks like JSON inside JSON: parse it first." if nested else f"Make it {wanted}."
    return DataError(f"{name} is {kind}, not {wanted}", where=where, do=do)


def as_text(value: object, name: str, where: str) -> str:
    """A value that is text.

    Raises:
        DataError: when it is not, or has half a character in it.
    """
    if not isinstance(value, str):
        raise wrong_kind(name, value, "text", where)
    try:
        value.isascii() or value.encode()
    except UnicodeEncodeError as fault:
        what = f"{name} has half of a surrogate pair ({value[fault.start]!r}), which is no character"
        raise DataError(what, where=where, do="Remove or repair it.") from None
    return value


def text_field(row: Row, key: str, where: str) -> str:
    """A field of a row that is text.

    Raises:
        DataError: when it is not.
    """
    return as_text(row[key], f"'{key}'", where)


def as_objects(value: object, name: str, where: str) -> list[Row]:
    """A value that is a list of objects.

    Raises:
        DataError: when it is not.
    """
    if not isinstance(value, list):
        raise wrong_kind(name, value, "a list of objects", where)
    for place, item in enumerate(value, 1):
        if not isinstance(item, Mapping):
            raise wrong_kind(f"item {place} of {name}", item, "an object", where)
    return value


def as_json(value: object, name: str, where: str) -> Any:
    """A value that may also be written as JSON, empty text being null; every text in it is sound.

    Raises:
        DataError: when it is no JSON.
    """
    try:
        if isinstance(value, str):
            value = json.loads(value) if value.strip() else None
        as_text(json.dumps(value, ensure_ascii=False), name, where)
    except (ValueError, TypeError, RecursionError):
        raise DataError(f"{name} is not JSON", where=where, do="Make it an object.") from None
    return value
