from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
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


def test_one_at_a_time_is_within_a_lock_and_nothing_is_left_of_it(tmp_path: Path) -> None:
    within: list[int] = []
    most: list[int] = []

    def turn(number: int) -> None:
        with store.locked(tmp_path / "folder" / "entry"):
            within.append(number)
            most.append(len(within))
            time.sleep(0.002)
            within.remove(number)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(turn, range(40)))
    assert most == [1] * 40
    assert list((tmp_path / "folder").iterdir()) == []


def test_who_is_patient_for_so_long_only_goes_on_without(tmp_path: Path) -> None:
    begun = time.monotonic()
    with store.locked(tmp_path / "entry"):
        with store.locked(tmp_path / "entry", patience=0.05):
            assert time.monotonic() - begun >= 0.05
        with store.locked(tmp_path / "other", patience=0.0):
            pass
        assert [file.name for file in tmp_path.iterdir()] == [".entry.lock"]
    assert list(tmp_path.iterdir()) == []


def test_a_lock_whose_owner_was_killed_is_free(tmp_path: Path) -> None:
    script = f"import os\nfrom pathlib import Path\nfrom danlu.data import store\nwith store.locked(Path({str(tmp_path)!r}, 'entry')): os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", script], check=False)
    assert [file.name for file in tmp_path.iterdir()] == [".entry.lock"]
    with store.locked(tmp_path / "entry"):
        pass
    assert list(tmp_path.iterdir()) == []
