from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from danlu.data.corpus import Corpus, Sample
from danlu.data.tokenizer import Tokenizer
from danlu.errors import DataError

from .conftest import sentence

Open = Callable[..., Corpus]


@pytest.fixture
def open_corpus(tmp_path: Path, tokenizer: Tokenizer, write_jsonl: Callable[..., Path]) -> Open:
    def corpus(texts: list[str], context: int = 1000, name: str = "data.jsonl") -> Corpus:
        return Corpus.open(str(write_jsonl(texts, name)), tokenizer, context=context, cache=tmp_path / "cache")

    return corpus


def joined(samples: list[Sample]) -> list[int]:
    """The tokens of a document from its pieces."""
    return samples[0].tokens[:1].tolist() + [token for sample in samples for token in sample.tokens[1:].tolist()]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text("ab c", max_size=12), min_size=1, max_size=8).filter(any), st.integers(1, 7))
def test_every_token_after_a_documents_first_is_a_target_once(
    open_corpus: Open, tokenizer: Tokenizer, texts: list[str], context: int
) -> None:
    corpus = open_corpus(texts, context)
    pieces: dict[str, list[Sample]] = {}
    for index in range(len(corpus)):
        sample = corpus[index]
        assert sample.id == index
        assert sample.num_targets == corpus.lengths[index] <= context
        pieces.setdefault(sample.origin.split()[0].rpartition(":")[2], []).append(sample)
    held = {str(line): text for line, text in enumerate(texts, 1) if text}
    assert list(pieces) == list(held)
    for line, text in held.items():
        assert joined(pieces[line]) == [0, *tokenizer.encode(text).tolist(), 0]
        assert sum(sample.num_bytes for sample in pieces[line]) == pytest.approx(len(text.encode()))


def test_nothing_is_dropped_without_being_counted(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a b c d e f g h"}\n\n{"text": ""}\n{"text": "x"}\n')
    (tmp_path / "empty.py").touch()
    bare = Corpus.open(
        str(tmp_path), tokenizer, context=3, cache=tmp_path / "cache", add_bos=False, add_eos=False, workers=1
    )
    counts = bare.statistics
    tokens = len(tokenizer.encode("a b c d e f g h"))
    assert (counts.files, counts.documents, counts.empty, counts.too_short, counts.cut) == (2, 5, 3, 1, 1)
    assert (counts.tokens, counts.num_bytes) == (tokens + 1, 16)
    assert counts.samples == len(bare) == -(-(tokens - 1) // 3)
    assert bare.lengths.sum() == tokens - 1


def test_origin_names_the_line_and_the_tokens_of_a_piece(open_corpus: Open) -> None:
    corpus = open_corpus(["x", "ab ab ab ab"], context=4)
    origins = [corpus[i].origin.rpartition("/")[2] for i in range(len(corpus))]
    assert origins[0] == "data.jsonl:1"
    assert origins[1] == "data.jsonl:2 tokens 0-4"
    assert origins[2].startswith("data.jsonl:2 tokens 4-")


def test_max_token_is_the_largest_id(open_corpus: Open) -> None:
    corpus = open_corpus([sentence(i) for i in range(50)])
    assert corpus.max_token == max(int(corpus[i].tokens.max()) for i in range(len(corpus)))


def test_an_index_beyond_the_corpus_is_refused(open_corpus: Open) -> None:
    corpus = open_corpus(["a", "b"])
    assert len(list(corpus)) == 2  # type: ignore[call-overload]
    for index in (-1, 2):
        with pytest.raises(IndexError):
            corpus[index]


def test_a_document_stays_on_its_side_when_others_are_added(open_corpus: Open) -> None:
    def sides(texts: list[str]) -> tuple[set[tuple[int, ...]], set[tuple[int, ...]]]:
        train, held_out = open_corpus(texts).split(0.2, seed=1)
        assert train.statistics.documents + held_out.statistics.documents == len(texts)
        train_set, held_set = ({tuple(c[i].tokens) for i in range(len(c))} for c in (train, held_out))
        return train_set, held_set

    few = [sentence(i) for i in range(100)]
    train, held_out = sides(few)
    more_train, more_held_out = sides([sentence(i) for i in range(100, 200)] + few)
    assert train < more_train
    assert held_out < more_held_out
    assert not more_train & more_held_out


def test_equal_documents_are_on_one_side(open_corpus: Open) -> None:
    train, held_out = open_corpus([sentence(i % 50) for i in range(200)]).split(0.3, seed=0)
    tokens = [{tuple(c[i].tokens) for i in range(len(c))} for c in (train, held_out)]
    assert not tokens[0] & tokens[1]
    assert len(tokens[0]) + len(tokens[1]) == 50


def test_a_split_that_leaves_a_side_empty_is_refused(open_corpus: Open) -> None:
    with pytest.raises(DataError, match=r"a split of 1 documents at 0\.05 leaves none to"):
        open_corpus(["the only document"]).split(0.05, seed=0)


def test_a_corpus_without_samples_is_refused(open_corpus: Open) -> None:
    with pytest.raises(DataError, match="none of the 2 documents has two tokens"):
        open_corpus(["", ""])


def test_the_fingerprint_tells_what_decides_the_samples(open_corpus: Open) -> None:
    texts = [sentence(i) for i in range(40)]
    corpus = open_corpus(texts)
    assert corpus.fingerprint == open_corpus(texts, name="moved.jsonl").fingerprint
    others = [open_corpus(texts, 10), open_corpus(texts[::-1]), open_corpus(texts[1:]), *corpus.split(0.3, seed=0)]
    assert len({corpus.fingerprint, *(other.fingerprint for other in others)}) == 6


def test_a_cache_that_is_lost_later_is_told(open_corpus: Open, tmp_path: Path) -> None:
    corpus = open_corpus(["a b c"])
    for file in (tmp_path / "cache").rglob("*"):
        if file.is_file():
            file.unlink()
    with pytest.raises(DataError, match="token cache has lost a file"):
        corpus[0]


def test_tokens_are_int64(open_corpus: Open) -> None:
    assert open_corpus(["a b"])[0].tokens.dtype == np.int64
