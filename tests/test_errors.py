from __future__ import annotations

import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from danlu import errors
from danlu.errors import (
    CheckpointError,
    ConvergenceError,
    DanluError,
    DataError,
    RecipeError,
    RunError,
    UnsupportedError,
    did_you_mean,
)

ALL = [DanluError, RecipeError, DataError, CheckpointError, UnsupportedError, ConvergenceError, RunError]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (DataError("it is empty"), "it is empty."),
        (DataError("it is empty."), "it is empty."),
        (DataError("it is empty", where="a.jsonl:3"), "a.jsonl:3: it is empty."),
        (DataError("it is empty", do="Fill it."), "it is empty. Fill it."),
        (DataError("it is empty", where=Path("a") / "b", do="Fill it."), "a/b: it is empty. Fill it."),
    ],
)
def test_an_error_is_a_sentence(error: DanluError, sentence: str) -> None:
    assert str(error) == sentence


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("where", [None, "a.jsonl:3", Path("a/b")])
def test_an_error_survives_the_trip_between_processes(kind: type[DanluError], where: str | Path | None) -> None:
    error = kind("it is empty", where=where, do="Fill it.")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), again.what, again.where, again.do) == (str(error), error.what, error.where, error.do)


def test_an_error_survives_a_future() -> None:
    def fail() -> None:
        raise RunError("it stopped", do="Start again.")

    with ThreadPoolExecutor(1) as pool, pytest.raises(RunError, match=r"^it stopped\. Start again\.$"):
        pool.submit(fail).result()


def test_the_tree_is_the_one_that_is_drawn() -> None:
    drawn = re.findall(r"── (\w+)", errors.__doc__ or "")
    assert drawn == [kind.__name__ for kind in DanluError.__subclasses__()]
    assert all(kind.__bases__ == (DanluError,) for kind in ALL[1:])


@pytest.mark.parametrize(
    ("name", "known", "answer"),
    [
        ("lerning_rate", ["seed", "learning_rate"], "Did you mean 'learning_rate'?"),
        ("zzz", ["b", "a"], "Known: a, b."),
        ("zzz", [], ""),
        ("seed", (x for x in ["seeds"]), "Did you mean 'seeds'?"),
    ],
)
def test_the_nearest_name_is_suggested(name: str, known: list[str], answer: str) -> None:
    assert did_you_mean(name, known) == answer
