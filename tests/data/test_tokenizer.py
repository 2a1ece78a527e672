from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.data.tokenizer import END_OF_TEXT, SMALLEST_VOCABULARY, Tokenizer
from danlu.errors import CheckpointError, DataError

from .conftest import sentence

BYTES_ONLY = Tokenizer.train_bpe([], SMALLEST_VOCABULARY)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_makes_the_round_trip(text: str) -> None:
    ids = BYTES_ONLY.encode(text)
    assert BYTES_ONLY.decode(ids) == text
    assert len(ids) == len(text.encode())


def test_merges_are_learnt_and_the_round_trip_stays(tokenizer: Tokenizer) -> None:
    text = sentence(40)
    assert len(tokenizer.encode(text)) < len(text.encode()) / 2
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_training_is_deterministic(tokenizer: Tokenizer) -> None:
    again = Tokenizer.train_bpe((sentence(i) for i in range(200)), vocab_size=400)
    assert again.fingerprint == tokenizer.fingerprint
    assert again.vocab_size == 400
    assert again.fingerprint != BYTES_ONLY.fingerprint


def test_a_special_token_in_a_text_is_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(f"a{END_OF_TEXT}b")
    assert tokenizer.eos_id == tokenizer.bos_id == 0
    assert 0 not in ids
    assert tokenizer.decode([0, *ids]) == f"{END_OF_TEXT}a{END_OF_TEXT}b"


def test_a_batch_is_its_texts(tokenizer: Tokenizer) -> None:
    texts = ["", sentence(3), "", sentence(22)]
    for ids, text in zip(tokenizer.encode_batch(texts), texts, strict=True):
        assert ids.dtype == np.int64
        assert ids.tolist() == tokenizer.encode(text).tolist()
    assert tokenizer.encode_batch([]) == []


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(DataError, match="cannot hold every byte"):
        Tokenizer.train_bpe(["x"], SMALLEST_VOCABULARY - 1)


def test_transformers_loads_what_is_saved_and_gives_the_same_ids(tmp_path: Path, tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    for number in range(30):
        assert theirs(sentence(number))["input_ids"] == tokenizer.encode(sentence(number)).tolist()
        assert theirs.decode(tokenizer.encode(sentence(number))) == sentence(number)


def test_what_transformers_saved_is_loaded_and_saved_to_the_byte(tmp_path: Path, tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path / "ours")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    theirs.add_special_tokens({"eos_token": "<|end|>"})
    theirs.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = Tokenizer.load(tmp_path / "theirs")
    assert (loaded.bos_id, loaded.eos_id, loaded.vocab_size) == (0, 400, 401)
    loaded.save(tmp_path / "copy")
    saved = {file.name: file.read_bytes() for file in (tmp_path / "theirs").iterdir()}
    assert {file.name: file.read_bytes() for file in (tmp_path / "copy").iterdir()} == saved
    assert "chat_template.jinja" in saved


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", {"bos_token": None, "eos_token": {"content": END_OF_TEXT}}),
        ("special_tokens_map.json", {"eos_token": END_OF_TEXT}),
        ("config.json", {"eos_token_id": [0, 5]}),
    ],
)
def test_the_last_token_is_found_where_the_hub_puts_it(
    tmp_path: Path, tokenizer: Tokenizer, name: str, content: object
) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.json)
    (tmp_path / name).write_text(json.dumps(content))
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (loaded.bos_id, loaded.eos_id) == (None, 0)
    assert loaded.fingerprint == tokenizer.fingerprint
    loaded.save(tmp_path / "copy")
    assert Tokenizer.load(tmp_path / "copy").eos_id == 0


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "there is no tokenizer.json"),
        ({"tokenizer.json": b"{}"}, "is no tokenizer"),
        ({"tokenizer.json": b"\xff"}, "is no tokenizer"),
        ({"tokenizer.json": BYTES_ONLY.json, "tokenizer_config.json": b"{"}, "is not JSON"),
        (
            {"tokenizer.json": BYTES_ONLY.json, "tokenizer_config.json": b'{"bos_token": "<s>"}'},
            "not in the vocabulary",
        ),
    ],
)
def test_an_incomplete_directory_is_refused(tmp_path: Path, files: dict[str, bytes], says: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=says) as caught:
        Tokenizer.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
