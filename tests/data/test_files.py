from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from danlu.data import hub
from danlu.data.files import resolve
from danlu.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "b.txt",
        "a.jsonl",
        "sub/c.md",
        "sub/deep/d.py",
        "sub/e.bin",
        ".hidden/f.txt",
        "sub/.g.txt",
        "h.PARQUET",
        "i.jsonl.gz",
        "j.bin.gz",
        "k.json",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return tmp_path


def names(folder: Path, files: list[Path]) -> list[str]:
    return [str(file.relative_to(folder)) for file in files]


def test_folder_gives_its_recognised_files_sorted_and_no_hidden_ones(folder: Path) -> None:
    assert names(folder, resolve(str(folder))) == [
        "a.jsonl",
        "b.txt",
        "h.PARQUET",
        "i.jsonl.gz",
        "sub/c.md",
        "sub/deep/d.py",
    ]


def test_glob_crosses_folders_and_takes_any_suffix(folder: Path) -> None:
    assert names(folder, resolve(f"{folder}/sub/**/*")) == ["sub/c.md", "sub/deep/d.py", "sub/e.bin"]


def test_patterns_keep_their_order_and_a_file_named_twice_is_read_once(folder: Path) -> None:
    assert names(folder, resolve([f"{folder}/b.txt", f"{folder}/*.*", f"{folder}/sub/../b.txt"])) == [
        "b.txt",
        "a.jsonl",
        "h.PARQUET",
        "i.jsonl.gz",
        "j.bin.gz",
        "k.json",
    ]


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("none.txt", "no such file"),
        ("*.none", "no file matches"),
        ("void", "no file to read"),
        ("empty.txt", "is empty"),
    ],
)
def test_what_stands_for_nothing_is_refused(tmp_path: Path, pattern: str, says: str) -> None:
    (tmp_path / "void").mkdir()
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match=says) as caught:
        resolve(str(tmp_path / pattern))
    assert pattern in str(caught.value)


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(DataError, match="no data file is named"):
        resolve([])


class _Datasets:
    """A stand-in for the `datasets` package."""

    def __init__(self, files: list[str] | Exception) -> None:
        self._files = files
        self.asked: list[tuple[str, str]] = []

    def load_dataset(self, name: str, split: str) -> _Datasets:
        self.asked.append((name, split))
        if isinstance(self._files, Exception):
            raise self._files
        return self

    @property
    def cache_files(self) -> list[dict[str, str]]:
        assert isinstance(self._files, list)
        return [{"filename": name} for name in self._files]


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch) -> Callable[..., _Datasets]:
    def install(files: list[str] | Exception) -> _Datasets:
        package = _Datasets(files)
        monkeypatch.setitem(sys.modules, "datasets", package)  # type: ignore[arg-type]
        monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: object())
        return package

    return install


def test_a_hub_data_set_is_its_arrow_files(datasets: Callable[..., _Datasets]) -> None:
    package = datasets(["/x/a-train.arrow", "/x/b-train.arrow"])
    for name in ("hub:org/name", "org/name", "org/name:test"):
        assert resolve(name) == [Path("/x/a-train.arrow"), Path("/x/b-train.arrow")]
    assert package.asked == [("org/name", "train"), ("org/name", "train"), ("org/name", "test")]


def test_a_hub_data_set_that_cannot_be_had_is_told_in_a_sentence(
    datasets: Callable[..., _Datasets], monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets(ConnectionError("no route\nto host"))
    with pytest.raises(DataError, match=r"org/name: this is no file, and no hub data set .* \(no route\)\."):
        resolve("org/name")
    datasets([])
    with pytest.raises(DataError, match="keeps no file"):
        resolve("org/name")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="needs the `datasets` package"):
        resolve("hub:org/name")


def test_a_file_that_is_not_there_is_no_name_of_a_data_set(datasets: Callable[..., _Datasets]) -> None:
    package = datasets([])
    for name in ("data/trian.jsonl", "a/b/c", "name", "data/trian.csv.gz"):
        with pytest.raises(DataError, match="no such file"):
            resolve(name)
    assert package.asked == []
