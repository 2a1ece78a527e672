from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tokenizers
import tokenizers.models

from danlu.data.encoder import Encoder, Shard
from danlu.data.formats import Chunk, Place
from danlu.data.tokenizer import Tokenizer

TEXTS = ["one", "", "the furnace burns low", "x", ""]
CHUNK = Chunk([text.encode() for text in TEXTS], Place(("a.txt", "b.txt", "c.txt", "d.txt", "e.txt"), 1))


@pytest.mark.parametrize(("add_bos", "add_eos"), [(True, True), (True, False), (False, True), (False, False)])
def test_a_shard_holds_each_document_between_its_first_and_last_token(
    tmp_path: Path, tokenizer: Tokenizer, add_bos: bool, add_eos: bool
) -> None:
    encoder = Encoder(tokenizer, add_bos, add_eos)
    path = tmp_path / encoder.key(CHUNK)
    encoder.store_chunk(CHUNK, path)
    shard = Shard.open(path, CHUNK.place)
    assert shard is not None
    expected = [[0] * add_bos + tokenizer.encode(text).tolist() + [0] * add_eos if text else [] for text in TEXTS]
    tokens = np.split(shard.map_tokens(), shard.documents["end"])
    assert [part.tolist() for part in tokens] == [*expected, []]
    assert shard.max_token == max(map(max, filter(None, expected)))
    assert shard.documents["num_bytes"].tolist() == [len(text) for text in TEXTS]
    assert shard.documents["digest"][1] == shard.documents["digest"][4] != shard.documents["digest"][0]


def test_a_key_tells_all_that_decides_the_tokens(tokenizer: Tokenizer) -> None:
    other = Tokenizer.train_bpe(["other text"], vocab_size=260)
    encoders = [
        Encoder(tokenizer),
        Encoder(tokenizer, add_bos=False),
        Encoder(tokenizer, add_eos=False),
        Encoder(other),
    ]
    assert len({encoder.key(CHUNK) for encoder in encoders}) == len(encoders)


def test_ids_are_wide_where_the_vocabulary_needs_it(tmp_path: Path, tokenizer: Tokenizer) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 70_000}, unk_token="a"))
    wide = Tokenizer({"tokenizer.json": backend.to_str().encode()}, bos_id=None, eos_id=None)
    assert (tokenizer.dtype, wide.dtype, wide.vocab_size) == (np.uint16, np.uint32, 70_001)
    Encoder(wide).store_chunk(Chunk([b"b"], Place(("a.txt",), 1)), tmp_path / "key")
    shard = Shard.open(tmp_path / "key", Place(("a.txt",), 1))
    assert shard is not None
    assert shard.map_tokens().tolist() == [70_000] == [shard.max_token]


def test_a_chunk_of_empty_documents_has_no_tokens(tmp_path: Path, tokenizer: Tokenizer) -> None:
    chunk = Chunk([b"", b""], Place(("a.txt", "b.txt"), 1))
    Encoder(tokenizer).store_chunk(chunk, tmp_path / "key")
    shard = Shard.open(tmp_path / "key", chunk.place)
    assert shard is not None
    assert shard.documents["end"].tolist() == [0, 0]
