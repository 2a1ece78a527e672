from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from danlu.data.collection import Collection
from danlu.data.cutting import Rules
from danlu.data.prepare import build_encoder
from danlu.data.source import DataSource
from danlu.data.tokenizer import Tokenizer
from danlu.errors import RecipeError

from .conftest import sentence

NUM = 23


@pytest.fixture
def collection(tmp_path: Path, tokenizer: Tokenizer, write_jsonl: Callable[..., Path]) -> Collection:
    path = write_jsonl([sentence(i) for i in range(NUM)])
    return Collection.open(str(path), build_encoder(tokenizer), Rules(500), cache=tmp_path / "cache")


def source_of(
    collection: Collection,
    *,
    seed: int = 0,
    shuffle: bool = True,
    epochs: int | None = None,
    step_samples: int | None = None,
    step_tokens: int | None = None,
) -> DataSource:
    stream = collection.stream(seed=seed, shuffle=shuffle, epochs=epochs)
    return DataSource(stream, step_samples=step_samples, step_tokens=step_tokens)


def ids(source: DataSource, steps: int) -> list[list[int]]:
    return [[sample.id for sample in source.draw()] for _ in range(steps)]


def test_an_epoch_has_every_sample_once_and_the_next_another_order(collection: Collection) -> None:
    source = source_of(collection, step_samples=NUM)
    first, second = ids(source, 2)
    assert sorted(first) == sorted(second) == list(range(NUM))
    assert first != second
    assert ids(source_of(collection, seed=1, step_samples=NUM), 1) != [first]
    assert ids(source_of(collection, seed=1, step_samples=NUM, shuffle=False), 1) == [list(range(NUM))]


def test_the_order_does_not_depend_on_the_step(collection: Collection) -> None:
    by_five = [i for step in ids(source_of(collection, step_samples=5), 12) for i in step]
    by_tokens: list[int] = []
    source = source_of(collection, step_tokens=300)
    while len(by_tokens) < len(by_five):
        by_tokens += [sample.id for sample in source.draw()]
    assert by_tokens[: len(by_five)] == by_five


def test_a_step_straddles_epochs_and_only_the_last_of_all_is_short(collection: Collection) -> None:
    source = source_of(collection, step_samples=5, epochs=2)
    sizes = []
    while not source.exhausted:
        sizes.append(len(source.draw()))
    assert sizes == [5] * 9 + [1]
    assert source.draw() == []
    state = source.state_dict()
    assert state["samples"] == 2 * NUM
    assert state["tokens"] == 2 * collection.whole().lengths.sum()
    assert source.epochs == 2.0


@pytest.mark.parametrize("step_tokens", [1, 40, 150])
def test_a_step_of_tokens_takes_what_fits_and_at_least_one(collection: Collection, step_tokens: int) -> None:
    source = source_of(collection, step_tokens=step_tokens, epochs=1)
    steps = []
    while not source.exhausted:
        steps.append([sample.num_targets for sample in source.draw()])
    assert sum(map(len, steps)) == NUM
    for step, following in zip(steps, [*steps[1:], [step_tokens + 1]], strict=True):
        assert len(step) == 1 or sum(step) <= step_tokens
        assert sum(step) + following[0] > step_tokens


@pytest.mark.parametrize("step", [{"step_samples": 5}, {"step_tokens": 200}])
@pytest.mark.parametrize("consumed", [0, 1, 4, 7])
def test_a_loaded_source_draws_the_very_next_sample(
    collection: Collection, step: dict[str, int], consumed: int
) -> None:
    source = source_of(collection, **step)
    ids(source, consumed)
    state = json.loads(json.dumps(source.state_dict()))
    resumed = source_of(collection, **step)
    ids(resumed, 3)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert ids(resumed, 8) == ids(source, 8)


@pytest.mark.parametrize("step", [{}, {"step_samples": 1, "step_tokens": 1}])
def test_a_step_is_samples_or_tokens(collection: Collection, step: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match="step_samples or step_tokens"):
        source_of(collection, **step)
