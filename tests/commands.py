"""Commands run in this process, and what they say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass(frozen=True)
class Answer:
    """What a command said and how it ended."""

    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Its lines, each of which is a strict JSON object."""
        return [json.loads(line, parse_constant=pytest.fail) for line in self.out.splitlines()]


Say = Callable[..., Answer]
