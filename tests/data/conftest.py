from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from danlu.data import Tokenizer

WORDS = [
    "the furnace",
    "burns low",
    "cinnabar,",
    "lead & mercury;",
    "nine times",
    "turned.",
    "火候 到",
    "naïve",
    "\n\n",
    "42",
]


def sentence(number: int) -> str:
    """Some text that differs from number to number, and in length too."""
    return " ".join(WORDS[(number * 7 + i * i) % len(WORDS)] for i in range(1 + number % 23)) + f" {number}"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train_bpe([sentence(i) for i in range(200)], vocab_size=400)


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    def write(texts: Sequence[str], name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        return path

    return write
