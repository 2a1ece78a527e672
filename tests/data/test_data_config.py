from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from danlu.data.config import DataConfig, Part

LEAST: dict[str, Any] = {"train": "a.txt", "context": 8, "step_samples": 2}


def test_every_field_is_documented() -> None:
    assert all(field.description for field in DataConfig.model_fields.values())


@pytest.mark.parametrize("held_out", [None, 0.1, "b.txt", ["b.txt", "c.txt"]])
def test_what_is_held_out_keeps_its_kind(held_out: object) -> None:
    assert DataConfig(**LEAST, held_out=held_out).held_out == held_out  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"step_tokens": 5},
        {"step_samples": None},
        {"step_samples": 0},
        {"context": 0},
        {"vocab_size": 256},
        {"workers": -1},
        {"held_out": 0.0},
        {"held_out": 1.0},
        {"trian": "a.txt"},
        {"too_long": "drop"},
        {"train_on": ["robot"]},
        {"train_on": []},
        {"field": "text", "fields": {"text": "body"}},
        {"train": [{"files": "a", "weight": 0}]},
        {"train": [{"files": "a", "weight": 1}, "b"]},
        {"train": [{"files": "a", "epochs": 0}]},
        {"train": [{"files": "a", "wieght": 1}]},
        {"train": [{"files": "a", "field": "x", "fields": {"text": "y"}}]},
        {"held_out_samples": 0},
    ],
)
def test_what_cannot_be_meant_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DataConfig(**(LEAST | change))


def test_names_alone_are_one_part_and_with_a_part_among_them_each_is_one() -> None:
    assert DataConfig(**LEAST).parts == [Part(files="a.txt")]
    assert DataConfig(**(LEAST | {"train": ["a", "b"]})).parts == [Part(files=["a", "b"])]
    mixed = DataConfig(**(LEAST | {"train": ["a", {"files": ["b", "c"], "epochs": 2}]}))
    assert mixed.parts == [Part(files="a"), Part(files=["b", "c"], epochs=2)]
    assert DataConfig(**mixed.model_dump(mode="json")) == mixed
