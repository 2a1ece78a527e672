from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from pathlib import Path

import pytest

from danlu.data.cache import TokenCache
from danlu.data.chunks import Chunk, FileChangedError
from danlu.data.encoder import Encoder
from danlu.data.index import index
from danlu.data.rows import Reader
from danlu.data.shard import Shard
from danlu.data.template import Template
from danlu.data.tokenizer import Tokenizer
from danlu.errors import DataError

from .conftest import sentence

MANY = [sentence(i) * 20 for i in range(3000)]


def tokenize(files: list[Path], tokenizer: Tokenizer, folder: Path, workers: int = 1) -> list[Shard]:
    encoder = Encoder(tokenizer, reader=Reader(Template.parse("text")))
    cache = TokenCache(encoder, folder, workers=workers)
    try:
        return cache.shards(index(files, folder))
    finally:
        cache.close()


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
    folder = tmp_path / "cache"
    first = tokenize([write_jsonl(MANY)], tokenizer, folder)
    assert [shard.path.name for shard in first] == made
    assert len(made) > 1
    again = tokenize([write_jsonl(MANY)], tokenizer, folder)
    assert len(made) == len(first) == len(again)
    more = tokenize([write_jsonl([*MANY, "appended"])], tokenizer, folder)
    assert len(made) <= len(first) + 2
    assert [shard.path for shard in more[: len(first) - 1]] == [shard.path for shard in first[:-1]]


def test_processes_write_what_one_process_writes_to_the_byte(
    tmp_path: Path, tokenizer: Tokenizer, write_jsonl: Callable[..., Path], made: list[str]
) -> None:
    files = [write_jsonl(MANY)]
    one = tokenize(files, tokenizer, tmp_path / "one")
    assert len(made) == len(one)
    two = tokenize(files, tokenizer, tmp_path / "two", workers=2)
    assert len(made) == len(one), "nothing is encoded here when processes do it"
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert [shard.place for shard in one] == [shard.place for shard in two]


def test_runs_that_write_the_same_cache_at_once_all_find_it_whole(
    tmp_path: Path, tokenizer: Tokenizer, write_jsonl: Callable[..., Path]
) -> None:
    files = [write_jsonl(MANY)]
    alone = tokenize(files, tokenizer, tmp_path / "alone")
    with ThreadPoolExecutor(4) as runs:
        together = list(runs.map(lambda _: tokenize(files, tokenizer, tmp_path / "shared"), range(4)))
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")
    assert all([shard.place for shard in shards] == [shard.place for shard in alone] for shards in together)


def test_a_file_that_changes_after_it_was_indexed_is_told_and_nothing_false_is_kept(
    tmp_path: Path, tokenizer: Tokenizer, write_jsonl: Callable[..., Path]
) -> None:
    path, folder = write_jsonl(["fine"]), tmp_path / "cache"
    chunks = index([path], folder)
    cache = TokenCache(Encoder(tokenizer, reader=Reader(Template.parse("text"))), folder, workers=2)
    write_jsonl(["mine"])
    with pytest.raises(FileChangedError, match=r"data.jsonl: the file has changed since it was indexed"):
        cache.shards(chunks)
    cache.close()
    assert contents(folder) == {}


def test_what_is_made_ahead_is_there_when_it_is_wanted_and_what_is_not_wanted_is_given_up(
    tmp_path: Path, tokenizer: Tokenizer, write_jsonl: Callable[..., Path], made: list[str]
) -> None:
    folder = tmp_path / "cache"
    chunks = index([write_jsonl(MANY)], folder)
    cache = TokenCache(Encoder(tokenizer, reader=Reader(Template.parse("text"))), folder, workers=2)
    cache.prefetch(chunks[:2])
    cache.prefetch(chunks[1:2])
    assert len(cache.shards(chunks[1:2])) == 1
    assert made == [], "another process made it"
    expected = tokenize([write_jsonl(MANY)], tokenizer, tmp_path / "other")
    assert cache.shards(chunks)[1].path.read_bytes() == expected[1].path.read_bytes()
    cache.close()


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:-1] + bytes([b[-1] ^ 1])])
def test_a_damaged_shard_is_made_again(
    tmp_path: Path,
    tokenizer: Tokenizer,
    write_jsonl: Callable[..., Path],
    damage: Callable[[bytes], bytes],
) -> None:
    files, folder = [write_jsonl(["a b c", "d e f"])], tmp_path / "cache"
    (shard,) = tokenize(files, tokenizer, folder)
    whole = shard.path.read_bytes()
    shard.path.write_bytes(damage(whole))
    (again,) = tokenize(files, tokenizer, folder)
    assert again.path == shard.path
    assert again.path.read_bytes() == whole


def test_a_kill_while_writing_leaves_nothing_that_is_trusted(
    tmp_path: Path, tokenizer: Tokenizer, write_jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    files, folder = [write_jsonl(["a b c"])], tmp_path / "cache"

    def killed(source: str, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            tokenize(files, tokenizer, folder)
    assert contents(folder) == {}
    assert len(tokenize(files, tokenizer, folder)) == 1


def test_a_cache_that_keeps_nothing_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, write_jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shard, "open", lambda path, place: None)
    with pytest.raises(DataError, match="does not keep"):
        tokenize([write_jsonl(["a"])], tokenizer, tmp_path / "cache")


def test_who_comes_to_a_chunk_that_is_being_encoded_waits_and_encodes_nothing(
    tmp_path: Path, tokenizer: Tokenizer, write_jsonl: Callable[..., Path], made: list[str]
) -> None:
    files = [write_jsonl(MANY)]
    count = len(index(files, tmp_path / "cache"))
    with ThreadPoolExecutor(4) as runs:
        together = list(runs.map(lambda _: tokenize(files, tokenizer, tmp_path / "cache"), range(4)))
    assert len(made) == len({*made}) == count
    assert {len(shards) for shards in together} == {count}
    assert not list((tmp_path / "cache").rglob(".*"))


@pytest.fixture
def at_work(
    tmp_path: Path, tokenizer: Tokenizer, write_jsonl: Callable[..., Path]
) -> Iterator[tuple[TokenCache, Sequence[Chunk], ProcessPoolExecutor]]:
    """A cache, what it is to encode, and its two processes, once both have begun."""
    chunks = index([write_jsonl(MANY)], tmp_path / "cache")
    encoder = Encoder(tokenizer, reader=Reader(Template.parse("text")))
    with closing(TokenCache(encoder, tmp_path / "cache", workers=2)) as cache:
        cache.prefetch(chunks)
        assert cache._processes is not None
        seen: set[int] = set()
        while len(seen) < 2:
            seen |= {asked.result(60) for asked in [cache._processes.submit(os.getpid) for _ in range(4)]}
        yield cache, chunks, cache._processes


def test_signals_to_all_processes_of_a_run_do_not_end_those_that_encode(
    at_work: tuple[TokenCache, Sequence[Chunk], ProcessPoolExecutor],
) -> None:
    cache, chunks, pool = at_work
    for number in pool._processes:
        os.kill(number, signal.SIGTERM)
        os.kill(number, signal.SIGINT)
    assert len(cache.shards(chunks)) == len(chunks)
    assert pool.submit(int).result(60) == 0


def test_when_a_process_that_encodes_dies_none_of_the_others_is_left(
    at_work: tuple[TokenCache, Sequence[Chunk], ProcessPoolExecutor],
) -> None:
    _, _, pool = at_work
    every = list(pool._processes.values())
    pool.submit(time.sleep, 60)
    with pytest.raises(BrokenProcessPool):
        pool.submit(os._exit, 1).result(60)
    until = time.monotonic() + 5
    while any(process.is_alive() for process in every) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(process.is_alive() for process in every)
