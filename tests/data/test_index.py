from __future__ import annotations

import gzip
import json
import os
import random
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.data import index as indexing
from danlu.data import scan, spool, store
from danlu.data.chunks import Chunk, FileChangedError, Place
from danlu.data.index import index
from danlu.data.scan import cut_files, cut_lines
from danlu.errors import DataError


def aged(path: Path, seconds: int = 60) -> Path:
    """The same file, last changed a while ago."""
    then = time.time_ns() - seconds * 10**9
    os.utime(path, ns=(then, then))
    return path


def lines_of(chunks: list[Chunk]) -> list[bytes]:
    return [record for chunk in chunks for record in chunk.records()]


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were scanned."""
    names: list[str] = []
    scanned = indexing._scan

    def counted(paths: list[str], *rest: object) -> object:
        names.extend(paths)
        return scanned(paths, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(indexing, "_scan", counted)
    return names


@given(
    st.lists(st.binary(max_size=9).map(lambda b: b.replace(b"\n", b"")), min_size=1, max_size=60),
    st.booleans(),
    st.integers(1, 40),
    st.integers(1, 5),
)
def test_chunks_hold_every_line_once_whatever_the_block(
    lines: list[bytes], ended: bool, block: int, least: int
) -> None:
    held = b"\n".join(lines) + b"\n" * ended
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("_BLOCK", block), ("LEAST_BYTES", least), ("MEAN_BYTES", 8), ("MOST_BYTES", 16)):
            patch.setattr(scan, name, value)
        with _file(held) as path:
            if not held:
                return
            cuts = list(cut_lines(path))
            patch.setattr(scan, "_BLOCK", 1 << 20)
            assert cuts == list(cut_lines(path)), "where a chunk ends does not depend on how the file is read"
            chunks = index([path], path.parent / "cache")
    start = 3 if held.startswith(b"\xef\xbb\xbf") else 0
    assert [cut.start for cut in cuts] == [start, *(cut.stop for cut in cuts[:-1])] if cuts else len(held) == start
    assert sum(cut.num_bytes for cut in cuts) == len(held) - start
    found = [line for cut in cuts for line in held[cut.start : cut.stop].removesuffix(b"\n").split(b"\n")]
    assert found == held[start:].removesuffix(b"\n").split(b"\n") or not held[start:]
    assert [chunk.num_documents for chunk in chunks] == [cut.num_documents for cut in cuts]
    assert len(found) == sum(cut.num_documents for cut in cuts)


class _file:  # noqa: N801 - reads as the function it is
    def __init__(self, held: bytes) -> None:
        import tempfile

        self._folder = tempfile.TemporaryDirectory()
        self._held = held

    def __enter__(self) -> Path:
        path = Path(self._folder.name, "a.jsonl")
        path.write_bytes(self._held)
        return path

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


def test_an_edit_changes_the_chunks_around_it_and_no_others(tmp_path: Path) -> None:
    draw = random.Random(0)
    lines = [json.dumps({"text": "".join(draw.choices("abcdef ", k=draw.randrange(2000)))}) for _ in range(12_000)]
    path = tmp_path / "a.jsonl"

    def digests() -> list[str]:
        path.write_text("\n".join(lines) + "\n")
        return [cut.digest for cut in cut_lines(path)]

    before = digests()
    lines.append(json.dumps({"text": "appended"}))
    appended = digests()
    assert appended[:-1] == before[: len(appended) - 1]
    assert len(before) > 4
    lines.insert(100, json.dumps({"text": "inserted"}))
    assert len(set(digests()) - set(appended)) <= 2


def test_a_digest_tells_content_from_place(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"ab\nc\n")
    (tmp_path / "y.jsonl").write_bytes(b"ab\nc\n")
    (tmp_path / "z.jsonl").write_bytes(b"a\nbc\n")
    x, y, z = (index([tmp_path / f"{name}.jsonl"], tmp_path)[0].digest for name in "xyz")
    assert x == y != z
    for name, held in (("a", "ab"), ("b", "c"), ("c", "a"), ("d", "bc")):
        (tmp_path / f"{name}.txt").write_text(held)
    one, other = (
        [cut.digest for cut in cut_files([tmp_path / f"{name}.txt" for name in names])] for names in ("ab", "cd")
    )
    assert one != other


def test_an_index_that_took_a_while_is_kept_until_the_file_changes(
    tmp_path: Path, scans: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "KEPT_BYTES", 10)
    path, cache = tmp_path / "a.jsonl", tmp_path / "cache"
    path.write_bytes(b'{"text": "one"}\n')
    index([path], cache)
    index([path], cache)
    assert len(scans) == 2, "so young a file may change again within its time's grain"
    aged(path)
    kept = index([path], cache)
    assert index([path], cache) == kept
    assert len(scans) == 3
    aged(path, 61)
    index([path], cache)
    assert len(scans) == 4
    path.write_bytes(b'{"text": "other"}\n')
    assert lines_of(index([aged(path, 62)], cache)) == [b'{"text": "other"}']


def test_a_small_file_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"{}\n")
    index([aged(tmp_path / "a.jsonl")], tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_what_was_unpacked_is_found_again_or_made_again(tmp_path: Path, scans: list[str]) -> None:
    path, cache = tmp_path / "a.json.gz", tmp_path / "cache"
    path.write_bytes(gzip.compress(b'[{"a": 1},\n{"a": 2}]'))
    aged(path)
    first = index([path], cache)
    assert lines_of(first) == [b'{"a": 1}', b'{"a": 2}']
    assert index([path], cache) == first
    assert len(scans) == 1
    for lost in (first[0].files[0], first[0].place.lines):
        assert lost is not None
        Path(lost).unlink()
        assert index([path], cache) == first
        assert lines_of(first) == [b'{"a": 1}', b'{"a": 2}']
    assert len(scans) == 3
    Path(first[0].files[0]).write_bytes(b'{"a": 7}\n{"a": 2}\n')
    with pytest.raises(FileChangedError):
        lines_of(index([path], cache))


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_kill_while_unpacking_leaves_a_sound_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """A process dies in the middle: first while it writes, then between putting one file and the other in place."""
    path, cache = tmp_path / "a.csv", tmp_path / "cache"
    path.write_text("text\n" + "".join(f"row {i}\n" for i in range(100)))
    aged(path)
    child = os.fork()
    if not child:
        replace, calls = os.replace, []

        def dying(*arguments: object) -> None:
            calls.append(arguments)
            if len(calls) == at:
                os._exit(9)
            replace(*arguments)  # type: ignore[arg-type]

        os.replace = dying  # type: ignore[assignment]
        index([path], cache)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    chunks = index([path], cache)
    assert [json.loads(line)["text"] for line in lines_of(chunks)] == [f"row {i}" for i in range(100)]
    assert [chunks[0].place.of(i) for i in (0, 99)] == [f"{path}:2", f"{path}:101"]
    assert not list(cache.rglob("*.part"))


def test_what_is_unpacked_of_a_changed_file_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path, cache = tmp_path / "a.csv", tmp_path / "cache"
    for text in ("one", "two", "three"):
        path.write_text(f"text\n{text}\n")
        assert lines_of(index([path], cache)) == [json.dumps({"text": text}).encode()]
    assert len(list(cache.rglob("*.spool"))) == 1


def test_a_changed_file_is_told(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.txt"):
        (tmp_path / name).write_text("one")
        (chunk,) = index([tmp_path / name], tmp_path / "cache")
        (tmp_path / name).write_text("two")
        with pytest.raises(FileChangedError, match=f"{name}: the file has changed"):
            chunk.records()
        (tmp_path / name).unlink()
        with pytest.raises(DataError, match="cannot be read"):
            chunk.records()


def test_places() -> None:
    assert Place(("a.jsonl",), 7).each(2) == ["a.jsonl:7", "a.jsonl:8"]
    assert Place(("a.txt", "b.txt")).each(2) == ["a.txt:1", "b.txt:1"]
    with pytest.raises(DataError, match="the cache has lost a file"):
        Place(("a.csv",), 1, "/nowhere").of(0)


def peak(path: Path, cache: Path) -> int:
    tracemalloc.start()
    index([path], cache)
    (_, highest), _ = tracemalloc.get_traced_memory(), tracemalloc.stop()
    return highest


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.jsonl.gz", "a.txt"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for room, of in ((scan, "_BLOCK"), (spool, "_BLOCK"), (indexing, "_HEAD")):
        monkeypatch.setattr(room, of, 1 << 16)
    most = []
    for count in (3000, 24_000):
        rows = [{"text": f"row {i} of some words"} for i in range(count)]
        path = tmp_path / str(count) / name
        path.parent.mkdir()
        held = json.dumps(rows, indent=0) if path.suffix == ".json" else "\n".join(map(json.dumps, rows)) + "\n"
        if path.suffix == ".csv":
            held = "text\n" + held.replace('"', "")
        path.write_bytes(gzip.compress(held.encode()) if path.suffix == ".gz" else held.encode())
        del held, rows
        most.append(peak(path, tmp_path / "cache"))
    assert most[1] < 1.5 * most[0] + (1 << 18)


def test_processes_that_unpack_the_same_file_wait_for_one_another(tmp_path: Path) -> None:
    path, cache = tmp_path / "a.csv", tmp_path / "cache"
    path.write_text("text\n" + "some words\n" * 20_000)
    aged(path)
    children = []
    for _ in range(3):
        child = os.fork()
        if not child:
            chunks = index([path], cache)
            os._exit(0 if len(lines_of(chunks)) == 20_000 else 1)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    assert store.read(next(file for file in cache.rglob("*") if file.is_file() and "." not in file.name)) is not None
