from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from danlu.data import Collection, Data, DataConfig, Mixture, Tokenizer, build_data, store
from danlu.errors import DataError

from .conftest import sentence

Write = Callable[..., Path]


def collection(data: Data) -> Collection:
    assert isinstance(data.train, Collection)
    return data.train


@pytest.fixture
def config(tmp_path: Path, write_jsonl: Write) -> DataConfig:
    path = write_jsonl([sentence(i) for i in range(300)])
    return DataConfig(train=str(path), context=32, step_samples=4, vocab_size=300, cache=str(tmp_path / "cache"))


def test_a_tokenizer_is_trained_once(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_data(config, seed=0)
    assert first.tokenizer.vocab_size == 300
    assert first.held_out is None
    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "train_bpe", None)
        again = build_data(config, seed=0)
    assert again.tokenizer.fingerprint == first.tokenizer.fingerprint
    assert collection(again).fingerprint == collection(first).fingerprint
    assert build_data(config.model_copy(update={"vocab_size": 310}), seed=0).tokenizer.vocab_size == 310


def test_a_tokenizer_that_was_altered_in_the_cache_is_trained_again(config: DataConfig, tmp_path: Path) -> None:
    first = build_data(config, seed=0).tokenizer
    for file in (tmp_path / "cache").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: store.HEADER_BYTES + 100])
    assert build_data(config, seed=0).tokenizer.fingerprint == first.fingerprint


def test_a_tokenizer_is_given_or_loaded(config: DataConfig, tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert build_data(config, seed=0, tokenizer=tokenizer).tokenizer is tokenizer
    tokenizer.save(tmp_path / "saved")
    named = config.model_copy(update={"tokenizer": str(tmp_path / "saved")})
    assert build_data(named, seed=0).tokenizer.fingerprint == tokenizer.fingerprint


def test_what_is_held_out_is_a_fraction_or_files(config: DataConfig, tokenizer: Tokenizer, write_jsonl: Write) -> None:
    whole = build_data(config, seed=0, tokenizer=tokenizer)
    data = build_data(config.model_copy(update={"held_out": 0.2}), seed=0, tokenizer=tokenizer)
    assert data.held_out is not None
    assert len(collection(data).whole()) + len(data.held_out) == len(collection(whole).whole())
    path = write_jsonl([sentence(1)], "held_out.jsonl")
    data = build_data(config.model_copy(update={"held_out": str(path)}), seed=0, tokenizer=tokenizer)
    assert data.held_out is not None
    assert data.held_out.statistics.documents == 1
    assert collection(data).fingerprint == collection(whole).fingerprint


def test_of_a_fraction_so_many_samples_are_measured_and_none_of_it_is_trained_on(
    config: DataConfig, tokenizer: Tokenizer
) -> None:
    fraction = config.model_copy(update={"held_out": 0.3})
    few = fraction.model_copy(update={"held_out_samples": 7})
    one, other = (build_data(each, seed=0, tokenizer=tokenizer) for each in (fraction, few))
    assert one.held_out is not None
    assert other.held_out is not None
    assert len(other.held_out) == 7
    assert [other.held_out[i].origin for i in range(7)] == [one.held_out[i].origin for i in range(7)]
    assert collection(one).fingerprint == collection(other).fingerprint
    lines = {
        corpus[i].origin.split()[0] for corpus in (one.held_out, collection(other).whole()) for i in range(len(corpus))
    }
    assert len(lines) == 300


def test_data_are_learned_by_shape_by_field_or_by_a_map_of_fields(
    tmp_path: Path, config: DataConfig, tokenizer: Tokenizer
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a ", "completion": "b", "body": "c"}\n')
    for change, expected in (
        ({}, "a b"),
        ({"field": "body"}, "c"),
        ({"field": "{body}{prompt}"}, "ca "),
        ({"fields": {"text": "body"}}, "c"),
    ):
        made = config.model_copy(update={"train": str(path), **change})
        sample = collection(build_data(made, seed=0, tokenizer=tokenizer)).whole()[0]
        assert tokenizer.decode(sample.tokens[1:-1]) == expected
        assert (sample.weights is None) == (expected != "a b")


def test_a_mixture_is_held_out_from_every_part(config: DataConfig, tokenizer: Tokenizer, write_jsonl: Write) -> None:
    paths = [write_jsonl([sentence(i) for i in range(first, first + 200)], f"{first}.jsonl") for first in (0, 500)]
    made = DataConfig(**(config.model_dump() | {"train": [{"files": str(p)} for p in paths], "held_out": 0.3}))
    data = build_data(made, seed=0, tokenizer=tokenizer)
    assert isinstance(data.train, Mixture)
    assert data.held_out is not None
    held = {data.held_out[i].origin.split()[0] for i in range(len(data.held_out))}
    assert {origin.split(":")[0] for origin in held} == {str(path) for path in paths}
    source, trained = data.source(made, seed=0, epochs=1), set()
    while not source.exhausted:
        trained |= {sample.origin.split()[0] for sample in source.draw()}
    assert not held & trained
    assert len(held | trained) == 400


def test_the_data_room_works_without_torch() -> None:
    code = "import sys, danlu.data; assert not {'torch', 'transformers', 'datasets', 'pyarrow'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_of_a_mixture_every_part_is_held_out_from(tmp_path: Path, tokenizer: Tokenizer) -> None:
    parts = []
    for name, count in (("a", 90), ("b", 30), ("c", 1)):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"text": f"{name} {sentence(i)}"}) + "\n" for i in range(count)))
        parts.append({"files": str(file)})
    config = DataConfig(
        train=parts, held_out=0.3, held_out_samples=20, context=64, step_samples=1, cache=str(tmp_path / "c")
    )
    data = build_data(config, 0, tokenizer)
    assert data.held_out is not None
    names = {Path(data.held_out[i].origin.split(":")[0]).stem for i in range(len(data.held_out))}
    assert {"a", "b"} <= names
    assert len(data.held_out.lengths) == len(data.held_out) <= 21
    assert data.held_out.max_token < tokenizer.vocab_size


def test_files_without_rows_are_told(tmp_path: Path, tokenizer: Tokenizer) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "none.parquet")
    config = DataConfig(train=str(tmp_path / "none.parquet"), context=8, step_samples=1, cache=str(tmp_path / "c"))
    with pytest.raises(DataError, match=r"none\.parquet: there are no rows"):
        build_data(config, 0, tokenizer)
