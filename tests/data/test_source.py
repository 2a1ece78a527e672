from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from danlu.data.corpus import Corpus
from danlu.data.source import CorpusSource
from danlu.data.tokenizer import Tokenizer
from danlu.errors import CheckpointError, DataError, RecipeError

from .conftest import sentence

NUM = 23


@pytest.fixture
def corpus(tmp_path: Path, tokenizer: Tokenizer, write_jsonl: Callable[..., Path]) -> Corpus:
    path = write_jsonl([sentence(i) for i in range(NUM)])
    return Corpus.open(str(path), tokenizer, context=500, cache=tmp_path / "cache")


def ids(source: CorpusSource, steps: int) -> list[list[int]]:
    return [[sample.id for sample in source.draw()] for _ in range(steps)]


def test_an_epoch_has_every_sample_once_and_the_next_another_order(corpus: Corpus) -> None:
    source = CorpusSource(corpus, seed=0, step_samples=NUM)
    first, second = ids(source, 2)
    assert sorted(first) == sorted(second) == list(range(NUM))
    assert first != second
    assert ids(CorpusSource(corpus, seed=1, step_samples=NUM), 1) != [first]
    assert ids(CorpusSource(corpus, seed=1, step_samples=NUM, shuffle=False), 1) == [list(range(NUM))]


def test_the_order_does_not_depend_on_the_step(corpus: Corpus) -> None:
    by_five = [i for step in ids(CorpusSource(corpus, seed=0, step_samples=5), 12) for i in step]
    by_tokens: list[int] = []
    source = CorpusSource(corpus, seed=0, step_tokens=300)
    while len(by_tokens) < len(by_five):
        by_tokens += [sample.id for sample in source.draw()]
    assert by_tokens[: len(by_five)] == by_five


def test_a_step_straddles_epochs_and_only_the_last_of_all_is_short(corpus: Corpus) -> None:
    source = CorpusSource(corpus, seed=0, step_samples=5, epochs=2)
    sizes = []
    while not source.exhausted:
        sizes.append(len(source.draw()))
    assert sizes == [5] * 9 + [1]
    assert source.draw() == []
    assert source.progress.samples == 2 * NUM
    assert source.progress.tokens == 2 * corpus.lengths.sum()


@pytest.mark.parametrize("step_tokens", [1, 40, 150])
def test_a_step_of_tokens_takes_what_fits_and_at_least_one(corpus: Corpus, step_tokens: int) -> None:
    source = CorpusSource(corpus, seed=0, step_tokens=step_tokens, epochs=1)
    steps = []
    while not source.exhausted:
        steps.append([sample.num_targets for sample in source.draw()])
    assert sum(map(len, steps)) == NUM
    for step, following in zip(steps, [*steps[1:], [step_tokens + 1]], strict=True):
        assert len(step) == 1 or sum(step) <= step_tokens
        assert sum(step) + following[0] > step_tokens


@pytest.mark.parametrize("step", [{"step_samples": 5}, {"step_tokens": 200}])
@pytest.mark.parametrize("consumed", [0, 1, 4, 7])
def test_a_loaded_source_draws_the_very_next_sample(corpus: Corpus, step: dict[str, int], consumed: int) -> None:
    source = CorpusSource(corpus, seed=0, **step)  # type: ignore[arg-type]
    ids(source, consumed)
    state = json.loads(json.dumps(source.state_dict()))
    resumed = CorpusSource(corpus, seed=0, **step)  # type: ignore[arg-type]
    ids(resumed, 3)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert ids(resumed, 8) == ids(source, 8)


def test_a_state_of_other_data_or_order_is_refused(corpus: Corpus) -> None:
    state = CorpusSource(corpus, seed=0, step_samples=5).state_dict()
    train, _ = corpus.split(0.4, seed=0)
    for other in (CorpusSource(train, seed=0, step_samples=5), CorpusSource(corpus, seed=1, step_samples=5)):
        with pytest.raises(DataError, match="the checkpoint's data is not this data"):
            other.load_state_dict(state)


@pytest.mark.parametrize("change", [{"epoch": None}, {"position": -1}, {"position": NUM}])
def test_a_state_that_is_none_is_refused(corpus: Corpus, change: dict[str, int | None]) -> None:
    source = CorpusSource(corpus, seed=0, step_samples=5)
    with pytest.raises(CheckpointError):
        source.load_state_dict(source.state_dict() | change)
    with pytest.raises(CheckpointError):
        source.load_state_dict({})


@pytest.mark.parametrize("step", [{}, {"step_samples": 1, "step_tokens": 1}])
def test_a_step_is_samples_or_tokens(corpus: Corpus, step: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match="step_samples or step_tokens"):
        CorpusSource(corpus, seed=0, **step)  # type: ignore[arg-type]
