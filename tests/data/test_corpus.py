from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from danlu.data.collection import Collection
from danlu.data.corpus import Corpus, Sample
from danlu.data.cutting import Rules, TooLong
from danlu.data.prepare import build_encoder
from danlu.data.statistics import Statistics
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
    tokens = len(tokenizer.encode("a b c d e f g h"))
    pieces = -(-(tokens - 1) // 3)
    assert bare.statistics == Statistics(
        files=2,
        documents=5,
        empty=3,
        too_short=1,
        cut=1,
        tokens=tokens + 1,
        samples=pieces,
        targets=tokens - 1,
        learned=tokens - 1,
        num_bytes=16,
        shapes={"text": 2},
    )
    assert len(bare) == pieces
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


def test_a_corpus_without_samples_is_refused(open_corpus: Open) -> None:
    with pytest.raises(DataError, match="none of the 2 documents has two tokens"):
        open_corpus(["", ""])


def test_the_fingerprint_tells_what_decides_the_samples(open_corpus: Open) -> None:
    texts = [sentence(i) for i in range(40)]
    corpus = open_corpus(texts)
    assert corpus.fingerprint == open_corpus(texts, name="moved.jsonl").fingerprint
    others = [open_corpus(texts, 10), open_corpus(texts[::-1]), open_corpus(texts[1:])]
    assert len({corpus.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_a_cache_that_is_lost_later_is_told(open_corpus: Open, tmp_path: Path) -> None:
    corpus = open_corpus(["a b c"])
    for file in (tmp_path / "cache").rglob("*"):
        if file.is_file():
            file.unlink()
    with pytest.raises(DataError, match="token cache has lost a file"):
        corpus[0]


def test_tokens_are_int64(open_corpus: Open) -> None:
    assert open_corpus(["a b"])[0].tokens.dtype == np.int64


RUNS = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from([0.0, 1.0, 0.5])), min_size=1, max_size=6
)  # of a document: how many tokens weigh how much


@given(
    st.lists(RUNS, min_size=1, max_size=6),
    st.integers(1, 6),
    st.sampled_from(["split", "truncate_left", "truncate_right"]),
)
def test_weights_follow_their_tokens_into_the_pieces(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: Tokenizer,
    documents: list[list[tuple[int, float]]],
    context: int,
    too_long: TooLong,
) -> None:
    """Against cutting each document by hand; ids are counted through all documents."""
    folder, number, expected = tmp_path_factory.mktemp("weights"), itertools.count(), []
    counts = {"too_short": 0, "unlearned": 0, "learned": 0, "samples": 0}
    with (folder / "a.jsonl").open("w") as file:
        for runs in documents:
            weights = [weight for length, weight in runs for _ in range(length)]
            ids = [next(number) for _ in weights]
            labels = [i if w else -100 for i, w in zip(ids, weights, strict=True)]
            file.write(json.dumps({"input_ids": ids, "labels": labels}) + "\n")
            pieces = by_hand(ids, [float(w > 0) for w in weights], context, too_long)
            learned = [piece for piece in pieces if any(piece[1])]
            counts["too_short"] += not pieces
            counts["unlearned"] += bool(pieces) and not learned
            counts["learned"] += sum(sum(piece[1]) for piece in learned)
            counts["samples"] += len(learned)
            expected += learned
    encoder = build_encoder(tokenizer)
    collection = Collection.open(str(folder / "a.jsonl"), encoder, Rules(context, too_long), cache=folder)
    corpus = collection.corpus([0])
    found = []
    for index in range(len(corpus)):
        sample = corpus[index]
        weights = [1.0] * sample.num_targets if sample.weights is None else sample.weights.tolist()
        found.append((sample.tokens.tolist(), weights))
        assert sample.shape == "tokens"
        assert sample.num_bytes > 0
    assert found == expected
    statistics = corpus.statistics
    assert {name: getattr(statistics, name) for name in counts} == counts


def by_hand(ids: list[int], weights: list[float], context: int, too_long: str) -> list[tuple[list[int], list[float]]]:
    targets = len(ids) - 1
    starts = range(0, targets, context)
    if too_long != "split" and targets > 0:
        starts = range(1) if too_long == "truncate_right" else range(max(0, targets - context), targets, context)
    ends = [min(start + context, targets) for start in starts]
    return [(ids[s : e + 1], weights[s + 1 : e + 1]) for s, e in zip(starts, ends, strict=True)]


@pytest.mark.parametrize(
    ("too_long", "counted", "samples"),
    [("split", "cut", 3), ("truncate_left", "truncated", 2), ("truncate_right", "truncated", 2)],
)
def test_what_becomes_of_a_document_that_is_too_long_is_counted(
    tmp_path: Path,
    tokenizer: Tokenizer,
    write_jsonl: Callable[..., Path],
    too_long: TooLong,
    counted: str,
    samples: int,
) -> None:
    path = write_jsonl(["x", "y" * 3])
    corpus = Collection.open(str(path), build_encoder(tokenizer), Rules(2, too_long), cache=tmp_path).whole()
    assert (len(corpus), getattr(corpus.statistics, counted)) == (samples, 1)
    long = corpus[1]
    assert long.origin == f"{path}:2 tokens {'2-4' if too_long == 'truncate_left' else '0-2'}"


def test_a_document_that_is_too_long_is_refused_where_that_is_asked(
    tmp_path: Path, tokenizer: Tokenizer, write_jsonl: Callable[..., Path]
) -> None:
    path = write_jsonl(["x", "y" * 3, "z"])
    rules, encoder = Rules(2, "refuse"), build_encoder(tokenizer)
    with pytest.raises(DataError, match=r"data.jsonl:2: the document has 5 tokens, and 3 fit"):
        Collection.open(str(path), encoder, rules, cache=tmp_path).whole()
    corpus = Collection.open(str(path), encoder, rules, cache=tmp_path, quarantine=tmp_path / "bad").whole()
    assert [corpus[i].origin for i in range(len(corpus))] == [f"{path}:1", f"{path}:3"]
    assert corpus.statistics.refused == 1
    (line,) = (tmp_path / "bad" / "data.jsonl.jsonl").read_text().splitlines()
    said = json.loads(line)
    assert said["where"] == f"{path}:2"
    assert json.loads(said["row"]) == {"text": "yyy"}


def test_rows_of_one_corpus_may_have_any_shape(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [
        {"text": "a b"},
        {"prompt": "a", "completion": "b"},
        {"input_ids": [5, 6, 7]},
        {"question": "a", "answer": "b"},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = Corpus.open(str(path), tokenizer, context=100, cache=tmp_path)
    assert [corpus[i].shape for i in range(4)] == ["text", "prompt/completion", "tokens", "question/answer"]
    assert [corpus[i].weights is None for i in range(4)] == [True, False, True, False]
    assert corpus.statistics.shapes == {"text": 1, "prompt/completion": 1, "tokens": 1, "question/answer": 1}
