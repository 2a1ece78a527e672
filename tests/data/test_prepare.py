from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from danlu.data import DataConfig, Tokenizer, build_data, store

from .conftest import sentence

Write = Callable[..., Path]


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
    assert again.train.fingerprint == first.train.fingerprint
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
    assert len(data.train) + len(data.held_out) == len(whole.train)
    path = write_jsonl([sentence(1)], "held_out.jsonl")
    data = build_data(config.model_copy(update={"held_out": str(path)}), seed=0, tokenizer=tokenizer)
    assert data.held_out is not None
    assert data.held_out.statistics.documents == 1
    assert data.train.fingerprint == whole.train.fingerprint
