from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tokenizers
import tokenizers.models

from danlu.data.chat import Chat
from danlu.data.chat_template import ChatTemplate
from danlu.data.chunks import Chunk, Place
from danlu.data.encoder import Encoder
from danlu.data.index import index
from danlu.data.rows import Reader
from danlu.data.shard import Shard
from danlu.data.template import Template
from danlu.data.tokenizer import Tokenizer

TEXTS = ["one", "", "the furnace burns low", "x", ""]


def chunk_of(folder: Path, *lines: str) -> Chunk:
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    (found,) = index([path], folder / "cache")
    return found


def stored(encoder: Encoder, chunk: Chunk, folder: Path) -> Shard:
    encoder.store_chunk(chunk, folder / "key")
    shard = Shard.open(folder / "key", chunk.place)
    assert shard is not None
    return shard


@pytest.fixture
def chunk(tmp_path: Path) -> Chunk:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"{number}.txt").write_text(text)
    (found,) = index([tmp_path / f"{number}.txt" for number in range(len(TEXTS))], tmp_path / "cache")
    return found


@pytest.mark.parametrize(("add_bos", "add_eos"), [(True, True), (True, False), (False, True), (False, False)])
def test_a_shard_holds_each_document_between_its_first_and_last_token(
    tmp_path: Path, tokenizer: Tokenizer, chunk: Chunk, add_bos: bool, add_eos: bool
) -> None:
    shard = stored(Encoder(tokenizer, add_bos, add_eos), chunk, tmp_path)
    expected = [[0] * add_bos + tokenizer.encode(text).tolist() + [0] * add_eos if text else [] for text in TEXTS]
    tokens = np.split(shard.map_tokens(), shard.documents["end"])
    assert [part.tolist() for part in tokens] == [*expected, []]
    assert shard.max_token == max(map(max, filter(None, expected)))
    assert shard.documents["num_bytes"].tolist() == [len(text) for text in TEXTS]
    assert shard.documents["digest"][1] == shard.documents["digest"][4] != shard.documents["digest"][0]


def test_a_key_tells_all_that_decides_the_tokens(tokenizer: Tokenizer, chunk: Chunk) -> None:
    other = Tokenizer.train_bpe(["other text"], vocab_size=260)
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", {"eos_token": "</s>"})
    encoders = [
        Encoder(tokenizer),
        Encoder(tokenizer, add_bos=False),
        Encoder(tokenizer, add_eos=False),
        Encoder(other),
        Encoder(tokenizer, reader=Reader(Template.parse("text"))),
        Encoder(tokenizer, reader=Reader(Template.parse("{text}!"))),
        Encoder(tokenizer, reader=Reader(fields=(("text", "body"),))),
        Encoder(tokenizer, chat=Chat(tokenizer, None)),
        Encoder(tokenizer, chat=Chat(tokenizer, None, ("all",))),
        Encoder(tokenizer, chat=Chat(tokenizer, template)),
    ]
    assert len({encoder.key(chunk) for encoder in encoders}) == len(encoders)


def test_ids_are_wide_where_the_vocabulary_needs_it(tmp_path: Path, tokenizer: Tokenizer) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 70_000}, unk_token="a"))
    wide = Tokenizer({"tokenizer.json": backend.to_str().encode()}, bos_id=None, eos_id=None)
    assert (tokenizer.dtype, wide.dtype, wide.vocab_size) == (np.uint16, np.uint32, 70_001)
    shard = stored(Encoder(wide, reader=Reader(Template.parse("t"))), chunk_of(tmp_path, '{"t": "b"}'), tmp_path)
    assert shard.map_tokens().tolist() == [70_000] == [shard.max_token]


def test_a_chunk_of_empty_documents_has_no_tokens(tmp_path: Path, tokenizer: Tokenizer) -> None:
    shard = stored(Encoder(tokenizer), chunk_of(tmp_path, "", ""), tmp_path)
    assert shard.documents["end"].tolist() == [0, 0]


def test_rows_of_every_shape_lie_together_each_with_its_weights(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [
        '{"prompt": "one ", "completion": "two"}',
        '{"text": "three"}',
        '{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}',
        '{"text": ""}',
        '{"input_ids": [4, 5]}',
    ]
    shard = stored(Encoder(tokenizer, chat=Chat(tokenizer, None)), chunk_of(tmp_path, *rows), tmp_path)
    one, two, three = (tokenizer.encode(text).tolist() for text in ("one ", "two", "three"))
    parts = np.split(shard.map_tokens(), shard.documents["end"])
    assert [part.tolist() for part in parts] == [[0, *one, *two, 0], [0, *three, 0], [1, 2, 3], [], [4, 5], []]
    assert [shard.shapes[number] for number in shard.documents["shape"]] == [
        *("prompt/completion", "text", "tokens", "text", "tokens")
    ]
    assert shard.documents["spans_end"].tolist() == [2, 2, 4, 4, 4]
    start = 1 + len(one)
    assert shard.spans.tolist() == [(0, start, 0), (start, start + len(two) + 1, 1), (0, 1, 0), (1, 3, 1)]
    assert shard.documents["num_bytes"][1] == 5


def test_a_faulty_row_is_kept_as_a_fault_by_its_line_wherever_the_content_lies(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    chunk = chunk_of(tmp_path, '{"text": "a"}', "{", '{"text": "b"}', '{"text": "\\ud800"}')
    shard = stored(Encoder(tokenizer), chunk, tmp_path)
    assert shard.documents["record"].tolist() == [0, 2]
    elsewhere = Shard.open(shard.path, Place(("other.jsonl",), 11))
    assert elsewhere is not None
    told = [str(fault.error(elsewhere.place)) for fault in elsewhere.faults]
    assert told[0].startswith("other.jsonl:12: the line is not JSON")
    assert told[1].startswith("other.jsonl:14: ")
    assert "half of a surrogate pair" in told[1]


def test_a_fault_inside_a_text_is_told_by_its_line(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\n\xe9t\xe9\n")
    (chunk,) = index([tmp_path / "a.txt"], tmp_path / "cache")
    (fault,) = stored(Encoder(tokenizer), chunk, tmp_path).faults
    assert str(fault.error(chunk.place)).startswith(f"{tmp_path}/a.txt:3: byte 0xe9 is not UTF-8")
