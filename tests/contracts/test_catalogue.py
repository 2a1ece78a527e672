"""Every exported method says what it is for, how it learns, what from, what it keeps that in, and whose it is."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from commands import Say
from danlu.catalogue import WORDS, methods_by
from danlu.contracts import Method
from danlu.registry import exported, lookup

METHODS = [entry.name for entry in exported("method")]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_where_it_belongs_and_whose_it_is(name: str) -> None:
    method = lookup("method", name)
    (entry,) = [entry for entry in exported("method") if entry.name == name]
    assert issubclass(method, Method)
    assert re.search(r"\d{4}.*https?://\S+$", entry.source), "author, year and link"
    assert entry.summary
    assert method.learns_from in ("sequence", "answers", "rows", "experience")
    assert method.level in ("table", "features", "network")
    for word in (method.goal, method.mechanism):
        assert re.fullmatch(r"[\w'-]+( [\w'-]+){0,4}", word), "a word or a few"


@pytest.mark.parametrize("word", WORDS)
def test_every_method_is_listed_once_under_what_it_says(say: Say, word: str) -> None:
    groups = methods_by(word)
    assert sorted(entry.name for entries in groups.values() for entry in entries) == METHODS
    rows = [line.split("\t") for line in say("list", "methods", "--by", word).out.splitlines()]
    assert rows == [[of, e.name, e.summary, e.source] for of, entries in groups.items() for e in entries]
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)


def test_the_page_on_acting_names_every_method_that_acts() -> None:
    page = (Path(__file__).parents[2] / "docs" / "acting.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", page[page.index("## Methods") : page.index("## What a report")]))
    assert {entry.name for entry in methods_by("data")["experience"]} == named


def test_known_methods_are_where_one_looks_for_them() -> None:
    assert {entry.name for entry in methods_by("data")["answers"]} >= {"dpo", "kto", "orpo", "reward", "simpo"}
    assert {entry.name for entry in methods_by("mechanism")["maximum likelihood"]} >= {"next_token", "sft"}


def test_another_word_is_one_sentence(say: Say) -> None:
    answer = say("list", "methods", "--by", "colour")
    known = "danlu: --by: methods are not listed by 'colour'. Known: goal, mechanism, data, level.\n"
    assert (answer.status, answer.out, answer.err) == (1, "", known)
    answer = say("list", "adapters", "--by", "goal")
    assert (answer.status, answer.out) == (1, "")
    assert "danlu list methods --by goal" in answer.err


def test_on_a_terminal_it_is_a_table(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda _: True)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", say("list", "--by", "goal").out).splitlines()
    assert any(re.match(r" *preference alignment +dpo ", line) for line in lines)
    assert any(re.match(r" +kto ", line) for line in lines), "said once a group"
