from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.data import scan
from danlu.data.collection import Collection
from danlu.data.corpus import Sample
from danlu.data.cutting import Rules
from danlu.data.mixture import Mixture, Portion
from danlu.data.prepare import build_encoder
from danlu.data.stream import Progress, Samples, Stream
from danlu.data.tokenizer import Tokenizer
from danlu.errors import CheckpointError, DataError

from .conftest import sentence

NUM = 120
POOL = 1500

Open = Callable[..., Collection]


@pytest.fixture
def open_collection(
    tmp_path: Path, tokenizer: Tokenizer, write_jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Open:
    """Documents in chunks so small that there are many."""
    for name, value in (("LEAST_BYTES", 100), ("MEAN_BYTES", 200), ("MOST_BYTES", 600)):
        monkeypatch.setattr(scan, name, value)

    def collection(texts: list[str] | None = None, name: str = "data.jsonl", rules: Rules | None = None) -> Collection:
        path = write_jsonl([sentence(i) for i in range(NUM)] if texts is None else texts, name)
        return Collection.open(str(path), build_encoder(tokenizer), rules or Rules(40), cache=tmp_path / "cache")

    return collection


def taken(stream: Samples, most: int = 10**6) -> list[Sample]:
    found: list[Sample] = []
    while len(found) < most and not stream.exhausted:
        found.append(stream.take())
    return found


def told(samples: list[Sample]) -> list[tuple[str, tuple[int, ...]]]:
    return [(sample.origin, tuple(sample.tokens.tolist())) for sample in samples]


def test_a_pass_has_every_sample_of_the_whole_once(open_collection: Open) -> None:
    collection = open_collection()
    whole = collection.whole()
    stream = collection.stream(seed=0, epochs=2, pool_bytes=POOL)
    found = taken(stream)
    assert len(stream._pools) > 3
    first, second = found[: len(whole)], found[len(whole) :]
    expected = sorted(told([whole[i] for i in range(len(whole))]))
    assert sorted(told(first)) == sorted(told(second)) == expected
    assert told(first) != told(second)
    assert len({sample.id for sample in first}) == len(whole)
    assert {sample.origin: sample.id for sample in first} == {sample.origin: sample.id for sample in second}


def test_in_the_order_of_the_files_streaming_is_the_whole(open_collection: Open) -> None:
    collection = open_collection()
    whole = collection.whole()
    for pool_bytes in (1, POOL, 10**9):
        found = taken(collection.stream(seed=0, shuffle=False, epochs=1, pool_bytes=pool_bytes))
        assert told(found) == told([whole[i] for i in range(len(whole))])


def test_what_fits_one_pool_is_mixed_as_a_whole(open_collection: Open) -> None:
    from danlu.data.order import permutation

    collection = open_collection()
    whole = collection.whole()
    found = taken(collection.stream(seed=3, epochs=2))
    order = [*permutation(len(whole), 3, 0), *permutation(len(whole), 3, 1)]
    assert [sample.id for sample in found] == order


def test_the_first_sample_needs_the_first_pool_alone(open_collection: Open) -> None:
    collection = open_collection()
    stream = collection.stream(seed=0, pool_bytes=POOL)
    assert collection.statistics.documents == 0
    stream.peek()
    few = collection.statistics
    assert 0 < few.documents < NUM / 3
    assert not few.complete
    assert collection.share_read == pytest.approx(few.documents / NUM)
    samples, targets = collection.expected
    taken(collection.stream(seed=0, pool_bytes=POOL, epochs=1))
    everything = collection.statistics
    assert collection.expected == (everything.samples, everything.targets)
    assert samples == pytest.approx(everything.samples, rel=0.5)
    assert targets == pytest.approx(everything.targets, rel=0.5)
    assert everything.complete
    assert everything == collection.whole().statistics
    taken(stream, 3 * NUM)
    assert collection.statistics == everything, "a chunk is counted once"


@given(
    consumed=st.integers(0, 300),
    ahead=st.integers(0, 200),
    pool_bytes=st.sampled_from([1, 700, POOL, 10**9]),
    shuffle=st.booleans(),
    epochs=st.sampled_from([None, 2]),
)
def test_a_stream_goes_on_at_the_very_next_sample(
    shared: Collection, consumed: int, ahead: int, pool_bytes: int, shuffle: bool, epochs: int | None
) -> None:
    def stream() -> Stream:
        return shared.stream(seed=1, shuffle=shuffle, epochs=epochs, pool_bytes=pool_bytes)

    one, other = stream(), stream()
    taken(one, consumed)
    if not one.exhausted:
        one.peek()
    state = json.loads(json.dumps(one.state_dict()))
    taken(other, ahead)
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert other.epochs == one.epochs
    assert told(taken(other, 60)) == told(taken(one, 60))
    assert other.state_dict() == one.state_dict()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Collection:
    folder = tmp_path_factory.mktemp("shared")
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps({"text": sentence(i)}) + "\n" for i in range(NUM)))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("LEAST_BYTES", 100), ("MEAN_BYTES", 200), ("MOST_BYTES", 600)):
            patch.setattr(scan, name, value)
        return Collection.open(str(path), build_encoder(tokenizer), Rules(40), cache=folder / "cache")


def test_epochs_rise_to_their_number_by_the_share_of_documents(shared: Collection) -> None:
    stream = shared.stream(seed=0, epochs=2, pool_bytes=POOL)
    total, seen = len(shared.whole()), [stream.epochs]
    for count in range(1, 2 * total + 1):
        stream.take()
        seen.append(stream.epochs)
        assert seen[-1] == pytest.approx(count / total, abs=0.05)
    assert seen[0] == 0.0
    assert seen == sorted(seen)
    assert seen[total] == 1.0
    assert seen[-1] == 2.0
    assert stream.exhausted
    single = shared.stream(seed=0)
    taken(single, 7)
    assert single.epochs == 7 / total


def test_a_token_that_a_model_has_not_is_refused_whenever_it_is_read(open_collection: Open) -> None:
    collection = open_collection()
    largest = open_collection().whole().max_token
    collection.bound_tokens(largest)
    with pytest.raises(DataError, match=f"the data hold token {largest}, and the model's last is {largest - 1}"):
        taken(collection.stream(seed=0, epochs=1, pool_bytes=POOL))
    with pytest.raises(DataError, match="the data hold token"):
        collection.bound_tokens(largest)
    collection.bound_tokens(largest + 1)


def test_pools_without_a_sample_are_passed_over(open_collection: Open) -> None:
    texts = ["", *[sentence(1)] * 3, *[""] * 200, sentence(2), *[""] * 300]
    collection = open_collection(texts)
    for shuffle in (True, False):
        stream = collection.stream(seed=0, shuffle=shuffle, epochs=3, pool_bytes=1000)
        assert len(taken(stream)) == 3 * len(collection.whole())
        assert stream.epochs == 3.0
        assert stream.exhausted


def test_data_without_a_sample_are_refused(open_collection: Open) -> None:
    for rules, says in (
        (None, "none of the 200 documents has two tokens"),
        (Rules(40, fraction=0.5), "a split of 200 documents at 0.5 leaves none to train on"),
    ):
        with pytest.raises(DataError, match=says):
            open_collection([""] * 200, rules=rules).stream(seed=0, pool_bytes=100).peek()


def test_a_state_of_other_data_or_order_is_refused(open_collection: Open) -> None:
    collection = open_collection()
    state = collection.stream(seed=0).state_dict()
    for other in (
        open_collection(["other"], "other.jsonl").stream(seed=0),
        open_collection(rules=Rules(39)).stream(seed=0),
        open_collection(rules=Rules(40, "truncate_left")).stream(seed=0),
        open_collection(rules=Rules(40, fraction=0.1)).stream(seed=0),
        collection.stream(seed=1),
        collection.stream(seed=0, shuffle=False),
        collection.stream(seed=0, pool_bytes=POOL),
    ):
        with pytest.raises(DataError, match="the checkpoint's data is not this data"):
            other.load_state_dict(state)


@pytest.mark.parametrize(
    "change", [{"epoch": None}, {"position": -1}, {"position": 10**6}, {"pool": 99}, {"pool": "x"}]
)
def test_a_state_that_is_none_is_refused(shared: Collection, change: dict[str, object]) -> None:
    stream = shared.stream(seed=0)
    with pytest.raises(CheckpointError):
        stream.load_state_dict(stream.state_dict() | change)
    with pytest.raises(CheckpointError):
        stream.load_state_dict({})
    assert stream.progress == Progress()


def test_the_next_pool_is_made_ahead(open_collection: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []
    monkeypatch.setattr(Collection, "prefetch", lambda self, chunks: asked.append(list(chunks)))
    collection = open_collection()
    stream = collection.stream(seed=0, epochs=2, pool_bytes=POOL)
    entered: list[list[int]] = []
    monkeypatch.setattr(
        collection, "corpus", lambda chunks: entered.append(list(chunks)) or type(collection).corpus(collection, chunks)
    )
    taken(stream)
    assert asked == entered[1:]


def test_prefetching_changes_nothing(tmp_path: Path, tokenizer: Tokenizer, shared: Collection) -> None:
    """With real processes, and a cache of its own."""
    again = Collection.open(
        str(shared.chunks[0].place.paths[0]),
        build_encoder(tokenizer),
        Rules(40),
        cache=tmp_path,
        workers=2,
        worth_processes=0,
    )
    again.chunks = shared.chunks
    again.sizes, again.counts = shared.sizes, shared.counts
    expected = told(taken(shared.stream(seed=0, epochs=1, pool_bytes=POOL)))
    assert told(taken(again.stream(seed=0, epochs=1, pool_bytes=POOL))) == expected
    again.close()


def test_held_out_documents_are_never_drawn_and_stay_on_their_side(open_collection: Open) -> None:
    def sides(texts: list[str]) -> tuple[set[tuple[int, ...]], set[tuple[int, ...]]]:
        collection = open_collection(texts, rules=Rules(1000, fraction=0.2, seed=1))
        train = taken(collection.stream(seed=0, epochs=1, pool_bytes=POOL))
        held = collection.held_out().whole()
        assert len(train) + len(held) == len(texts)
        return {tuple(s.tokens) for s in train}, {tuple(held[i].tokens) for i in range(len(held))}

    few = [sentence(i) for i in range(100)]
    train, held_out = sides(few)
    more_train, more_held_out = sides([sentence(i % 150) for i in range(100, 200)] + few)
    assert train < more_train
    assert held_out < more_held_out
    assert not more_train & more_held_out, "equal documents are on one side"


def test_no_more_is_encoded_than_the_held_out_samples_take(open_collection: Open, tmp_path: Path) -> None:
    collection = open_collection([sentence(i) for i in range(600)], rules=Rules(1000, fraction=0.2, seed=0))
    side = collection.held_out()
    few = side.whole(10)
    assert len(few) == 10
    assert len(list((tmp_path / "cache").rglob("??????*"))) < len(collection.chunks) / 2
    everything = side.whole()
    assert told([few[i] for i in range(10)]) == told([everything[i] for i in range(10)])
    assert len(side.whole(10**6)) == len(everything)


def parts(open_collection: Open) -> list[Collection]:
    return [open_collection([f"{name} {sentence(i)}" for i in range(60)], f"{name}.jsonl") for name in "abc"]


def of(samples: list[Sample]) -> Counter[str]:
    return Counter(Path(sample.origin.split(":")[0]).stem for sample in samples)


def test_a_mixture_is_drawn_by_its_weights(open_collection: Open) -> None:
    mixture = Mixture([Portion(c, w) for c, w in zip(parts(open_collection), (1, 2, 5), strict=True)])
    counts = of(taken(mixture.stream(seed=0), 4000))
    for name, share in (("a", 1 / 8), ("b", 2 / 8), ("c", 5 / 8)):
        assert counts[name] / 4000 == pytest.approx(share, abs=0.03)
    orders = {tuple(told(taken(mixture.stream(seed=seed), 20))) for seed in (0, 0, 1)}
    assert len(orders) == 2


def test_ids_of_a_mixture_are_different(open_collection: Open) -> None:
    mixture = Mixture([Portion(c, 1) for c in parts(open_collection)])
    found = taken(mixture.stream(seed=0, epochs=1, pool_bytes=POOL))
    assert len({sample.id for sample in found}) == len(found)
    assert max(sample.id for sample in found) < 2**63


def test_parts_end_by_themselves_and_the_mixture_with_the_last(open_collection: Open) -> None:
    collections = parts(open_collection)
    samples = [len(c.whole()) for c in collections]
    mixture = Mixture(
        [Portion(collections[0], 9, epochs=1), Portion(collections[1], 1, epochs=3), Portion(collections[2], 1)]
    )
    stream = mixture.stream(seed=0, epochs=2, pool_bytes=POOL)
    seen, found = [stream.epochs], []
    while not stream.exhausted:
        found.append(stream.take())
        seen.append(stream.epochs)
    assert of(found) == {"a": samples[0], "b": 3 * samples[1], "c": 2 * samples[2]}
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 2.0)
    assert "a" not in of(found[-samples[1] :])
    endless = mixture.stream(seed=0)
    assert of(taken(endless, 1000))["c"] > 2 * samples[2]


@given(consumed=st.integers(0, 200), ahead=st.integers(0, 50), epochs=st.sampled_from([None, 1]))
def test_a_mixture_goes_on_at_the_very_next_sample(
    blend: Mixture, consumed: int, ahead: int, epochs: int | None
) -> None:
    one, other = (blend.stream(seed=2, epochs=epochs, pool_bytes=POOL) for _ in range(2))
    taken(one, consumed)
    if not one.exhausted:
        one.peek()
    state = json.loads(json.dumps(one.state_dict()))
    taken(other, ahead)
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert told(taken(other, 50)) == told(taken(one, 50))


@pytest.fixture(scope="module")
def blend(shared: Collection) -> Mixture:
    return Mixture([Portion(shared, 3.0), Portion(shared, 1.0, seed=9, epochs=1)])


def test_a_state_of_another_mixture_is_refused(blend: Mixture, shared: Collection) -> None:
    stream = blend.stream(seed=0)
    for state in ({}, shared.stream(seed=0).state_dict(), {"drawn": 0, "parts": []}):
        with pytest.raises(CheckpointError, match="not of a mixture of 2 parts"):
            stream.load_state_dict(state)
    with pytest.raises(DataError, match="is not this data"):
        blend.stream(seed=1).load_state_dict(stream.state_dict())


def test_a_part_has_a_seed_of_its_own(blend: Mixture) -> None:
    found = taken(blend.stream(seed=0), 400)
    orders = [[s.origin for s in found if s.id >> 56 == part][:30] for part in (0, 1)]
    assert orders[0] != orders[1]


def test_statistics_of_a_mixture_are_those_of_its_parts(open_collection: Open) -> None:
    collections = parts(open_collection)
    mixture = Mixture([Portion(c, 1) for c in collections])
    taken(mixture.stream(seed=0, epochs=1))
    assert mixture.statistics.documents == mixture.num_documents == 180
    assert mixture.statistics.complete
    assert mixture.share_read == 1.0
    assert mixture.max_token == max(c.max_token for c in collections)
