from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from danlu.data.cache import tokenize
from danlu.data.encoder import Encoder, Shard
from danlu.data.formats import Chunk
from danlu.data.template import Template
from danlu.data.tokenizer import Tokenizer
from danlu.errors import DataError

from .conftest import sentence

TEXT = Template.parse("text")
MANY = [sentence(i) * 20 for i in range(2000)]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that were made rather than found."""
    names: list[str] = []
    store_chunk = Encoder.store_chunk

    def counted(self: Encoder, chunk: Chunk, path: Path) -> None:
        names.append(path.name)
        store_chunk(self, chunk, path)

    monkeypatch.setattr(Encoder, "store_chunk", counted)
    return names


def test_a_second_run_makes_nothing_and_an_appended_document_one_shard(
    tmp_path: Path, tokenizer: Tokenizer, write_jsonl: Callable[..., Path], made: list[str]
) -> None:
    encoder, folder = Encoder(tokenizer), tmp_path / "cache"
    first = tokenize([write_jsonl(MANY)], TEXT, encoder, cache=folder)
    assert [shard.path.name for shard in first] == made
    assert len(made) > 2
    again = tokenize([write_jsonl(MANY)], TEXT, encoder, cache=folder)
    assert len(made) == len(first) == len(again)
    more = tokenize([write_jsonl([*MANY, "appended"])], TEXT, encoder, cache=folder)
    assert len(made) <= len(first) + 2
    assert [shard.path for shard in more[: len(first) - 1]] == [shard.path for shard in first[:-1]]


def test_processes_write_what_one_process_writes_to_the_byte(
    tmp_path: Path, tokenizer: Tokenizer, write_jsonl: Callable[..., Path], made: list[str]
) -> None:
    files, encoder = [write_jsonl(MANY)], Encoder(tokenizer)
    one = tokenize(files, TEXT, encoder, cache=tmp_path / "one", workers=1)
    assert len(made) == len(one)
    two = tokenize(files, TEXT, encoder, cache=tmp_path / "two", workers=2, worth_processes=0)
    assert len(made) == len(one), "nothing is encoded here when processes do it"
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert [shard.place for shard in one] == [shard.place for shard in two]


def test_runs_that_write_the_same_cache_at_once_all_find_it_whole(
    tmp_path: Path, tokenizer: Tokenizer, write_jsonl: Callable[..., Path]
) -> None:
    files, encoder = [write_jsonl(MANY)], Encoder(tokenizer)
    alone = tokenize(files, TEXT, encoder, cache=tmp_path / "alone")
    with ThreadPoolExecutor(4) as runs:
        together = list(runs.map(lambda _: tokenize(files, TEXT, encoder, cache=tmp_path / "shared"), range(4)))
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
    assert all([shard.place for shard in shards] == [shard.place for shard in alone] for shards in together)


def test_a_fault_found_by_a_process_is_told_here(
    tmp_path: Path, tokenizer: Tokenizer, write_jsonl: Callable[..., Path]
) -> None:
    path = write_jsonl(["fine"])
    with path.open("a") as file:
        file.write('{"text": 1}\n')
    with pytest.raises(DataError, match=r"data.jsonl:2: field 'text' is int"):
        tokenize([path], TEXT, Encoder(tokenizer), cache=tmp_path / "cache", workers=2, worth_processes=0)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:-1] + bytes([b[-1] ^ 1])])
def test_a_damaged_shard_is_made_again(
    tmp_path: Path,
    tokenizer: Tokenizer,
    write_jsonl: Callable[..., Path],
    damage: Callable[[bytes], bytes],
) -> None:
    files, encoder, folder = [write_jsonl(["a b c", "d e f"])], Encoder(tokenizer), tmp_path / "cache"
    (shard,) = tokenize(files, TEXT, encoder, cache=folder)
    whole = shard.path.read_bytes()
    shard.path.write_bytes(damage(whole))
    (again,) = tokenize(files, TEXT, encoder, cache=folder)
    assert again.path == shard.path
    assert again.path.read_bytes() == whole


def test_a_kill_while_writing_leaves_nothing_that_is_trusted(
    tmp_path: Path, tokenizer: Tokenizer, write_jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    files, encoder, folder = [write_jsonl(["a b c"])], Encoder(tokenizer), tmp_path / "cache"

    def killed(source: str, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            tokenize(files, TEXT, encoder, cache=folder)
    assert contents(folder) == {}
    assert len(tokenize(files, TEXT, encoder, cache=folder)) == 1


def test_a_cache_that_keeps_nothing_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, write_jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shard, "open", lambda path, place: None)
    with pytest.raises(DataError, match="does not keep"):
        tokenize([write_jsonl(["a"])], TEXT, Encoder(tokenizer), cache=tmp_path / "cache")
