from __future__ import annotations

from pathlib import Path

import pytest

from danlu.data import store
from danlu.errors import DataError


def test_what_is_written_is_read_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = store.entry(tmp_path, "abcdef")
    store.write(path, [b"one", b"", b"two"])
    content = store.read(path)
    assert content is not None
    assert bytes(content) == b"onetwo"
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["abcdef"]


def test_any_cut_and_any_changed_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "entry"
    store.write(path, [b"content of the file"])
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        assert store.read(path) is None, end
    path.write_bytes(whole + b"\0")
    assert store.read(path) is None
    unused = range(24, store.HEADER_BYTES)
    for at in set(range(len(whole))) - set(unused):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert store.read(path) is None, at


def test_a_file_under_another_name_is_not_trusted(tmp_path: Path) -> None:
    store.write(tmp_path / "one", [b"content"])
    (tmp_path / "one").rename(tmp_path / "two")
    assert store.read(tmp_path / "two") is None
    assert store.read(tmp_path / "one") is None


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="DANLU_CACHE"):
        store.write(tmp_path / "file" / "entry", [b""])


def test_the_folder_is_an_argument_or_the_environments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DANLU_CACHE", str(tmp_path))
    assert store.cache_folder() == tmp_path
    assert store.cache_folder("other") == Path("other")
    monkeypatch.delenv("DANLU_CACHE")
    assert store.cache_folder() == Path.home() / ".cache/danlu/tokens"
