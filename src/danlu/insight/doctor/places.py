"""Where rows lie, kept small."""

from __future__ import annotations

from array import array
from typing import final


@final
class Places:
    """Many ``file:line``, twelve bytes each; the names of files are kept once.

    Example:
        >>> places = Places()
        >>> places.add("a.jsonl:7"), places.add("a.jsonl:9 tokens 0-4")
        (0, 1)
        >>> places[0], places[1], len(places)
        ('a.jsonl:7', 'a.jsonl:9 tokens 0-4', 2)
    """

    def __init__(self) -> None:
        self._names: dict[str, int] = {}
        self._order: list[str] = []
        self._name = array("i")
        self._line = array("q")

    def __len__(self) -> int:
        return len(self._line)

    def __getitem__(self, index: int) -> str:
        name, line = self._order[self._name[index]], self._line[index]
        return name if line < 0 else f"{name}:{line}"

    def add(self, where: str) -> int:
        """Keep one; its index."""
        name, colon, line = where.rpartition(":")
        if not (colon and line.isascii() and line.isdigit() and len(line) < 19 and str(int(line)) == line):
            name, line = where, "-1"
        number = self._names.setdefault(name, len(self._names))
        if number == len(self._order):
            self._order.append(name)
        self._name.append(number)
        self._line.append(int(line))
        return len(self) - 1
