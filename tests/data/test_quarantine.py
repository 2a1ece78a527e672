from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from danlu.data.collection import Collection
from danlu.data.cutting import Rules
from danlu.data.prepare import build_encoder
from danlu.data.tokenizer import Tokenizer
from danlu.errors import DataError

ROWS = ['{"text": "good"}', "{", '{"text": 7}', '{"text": "fine"}', '["text"]', '{"text": "half \\ud800"}']
BAD = [2, 3, 5, 6]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text("\n".join(ROWS) + "\n")
    return tmp_path / "rows.jsonl"


def collection(path: Path, tokenizer: Tokenizer, quarantine: Path | None = None) -> Collection:
    encoder = build_encoder(tokenizer)
    return Collection.open(str(path), encoder, Rules(100), cache=path.parent / "cache", quarantine=quarantine)


def put_aside(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_without_a_quarantine_the_first_bad_row_ends_it(path: Path, tokenizer: Tokenizer) -> None:
    for _ in range(2):
        with pytest.raises(DataError, match=r"rows.jsonl:2: the line is not JSON"):
            collection(path, tokenizer).whole()
    with pytest.raises(DataError, match=r"rows.jsonl:2: the line is not JSON"):
        collection(path, tokenizer).stream(seed=0).peek()


def test_bad_rows_are_set_aside_once_and_counted_and_the_rest_is_used(
    path: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    folder = tmp_path / "bad"
    for _ in range(2):
        corpus = collection(path, tokenizer, folder).whole()
        assert [corpus[i].origin for i in range(len(corpus))] == [f"{path}:1", f"{path}:4"]
        assert corpus.statistics.faults == len(BAD)
        assert corpus.statistics.documents == 2
    found = put_aside(folder, "rows.jsonl")
    assert [row["where"] for row in found] == [f"{path}:{line}" for line in BAD]
    assert [row["row"] for row in found] == [ROWS[line - 1] for line in BAD]
    assert all(row["what"] and "\n" not in row["what"] for row in found)
    made = collection(path, tokenizer, folder)
    stream = made.stream(seed=0, epochs=2)
    while not stream.exhausted:
        stream.take()
    assert made.statistics.faults == len(BAD)
    assert put_aside(folder, "rows.jsonl") == found


def test_of_several_ranks_the_first_sets_rows_aside(
    path: Path, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, ranks = tmp_path / "bad", []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        ranks.append(collection(path, tokenizer, folder))
    for made in reversed(ranks):  # whichever comes first
        assert made.whole().statistics.faults == len(BAD)
        assert folder.exists() == (made is ranks[0])
    assert len(put_aside(folder, "rows.jsonl")) == len(BAD)


def test_rows_of_any_form_are_set_aside_by_the_line_of_the_users_file(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = tmp_path / "bad"
    (tmp_path / "a.csv").write_text('text,b\n"one\ntwo",1\n3\n')
    parquet.write_table(
        pa.table({"text": ["x", None], "when": [pa.scalar(0, pa.timestamp("s"))] * 2}), tmp_path / "a.parquet"
    )
    (tmp_path / "a.txt").write_bytes(b"one\n\xff")
    for name in ("a.csv", "a.parquet", "a.txt"):
        collection(tmp_path / name, tokenizer, folder).corpus([0])
    (row,) = put_aside(folder, "a.csv")
    assert (row["where"], row["row"]) == (f"{tmp_path}/a.csv:4", '["3"]')
    (row,) = put_aside(folder, "a.parquet")
    assert (row["where"], row["row"]["text"]) == (f"{tmp_path}/a.parquet:2", None)
    (row,) = put_aside(folder, "a.txt")
    assert row["where"] == f"{tmp_path}/a.txt:2"


def test_data_of_bad_rows_alone_are_refused_all_the_same(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.jsonl").write_text("{\n[\n")
    with pytest.raises(DataError, match="2 of 2 rows were set aside, and nothing is left to learn from"):
        collection(tmp_path / "a.jsonl", tokenizer, tmp_path / "bad").whole()


def test_a_quarantine_that_cannot_be_written_is_told(path: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="the quarantine cannot be written"):
        collection(path, tokenizer, tmp_path / "file").whole()
