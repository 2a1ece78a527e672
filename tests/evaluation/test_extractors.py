from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from danlu.evaluation.extractors import GSM8K, Choice, Exact

ROWS = Path(__file__).parents[3] / "shared" / "data" / "gsm8k_train.jsonl"
PUBLISHED = re.compile(r"#### (\-?[0-9\.\,]+)")
"""As the data set's authors read an answer (openai/grade-school-math, dataset.py)."""


def published(text: str) -> str:
    found = PUBLISHED.search(text)
    assert found is not None
    return found[1].strip().replace(",", "")


def test_gsm8k_s_own_answers_are_read_as_its_authors_read_them() -> None:
    if not ROWS.is_file():
        pytest.skip(f"the data set is not here: {ROWS}")
    answers = [json.loads(line)["answer"] for line in ROWS.read_text(encoding="utf-8").splitlines()]
    assert len(answers) > 7000
    for text in answers:
        assert GSM8K().reference(text) == GSM8K().answer(text) == published(text)
        before, _, number = text.partition("####")
        assert GSM8K().answer(f"{before}So the answer is ${number.strip()}.") == published(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 72", "72"),
        ("so 5 and 6\n####  $1,234,567.", "1234567"),
        ("#### -3.50", "-3.50"),
        ("#### 7 (of 12)", "7"),
        ("#### 7\nQuestion: what is 3 + 4? #### 12", "7"),
        ("#### seven, that is 7", "7"),
        ("#### none", None),
        ("first 3, then 4.", "4"),
        ("it costs -$5.25!", "-5.25"),
        ("a half is .5", ".5"),
        ("in 10, 11, 12,", "12"),
        ("no number", None),
        ("", None),
    ],
)
def test_numbers_in_answers(text: str, number: str | None) -> None:
    assert GSM8K().answer(text) == number


def test_a_reference_without_the_mark_has_no_number() -> None:
    assert GSM8K().reference("the answer is 72") is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" (c) no, C.", "C"),
        ("D) because A is wrong", "D"),
        ("**A**", "A"),
        ("The answer is: **B**. Not C.", "B"),
        ("Answer: A? No, the correct answer is (C).", "C"),
        ("I choose option D", "D"),
        ("It must be B or, better, C", "C"),
        ("A furnace", None),
        ("Between (A) and others", "A"),
        ("none of them", None),
        ("CAB", None),
        ("", None),
    ],
)
def test_letters_in_answers(text: str, letter: str | None) -> None:
    assert Choice().answer(text) == letter


def test_exact_is_all_of_the_text_but_the_space_around_it() -> None:
    assert Exact().reference(" 火候 到\n") == Exact().answer("火候 到") != Exact().answer("火候到")
