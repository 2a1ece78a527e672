from __future__ import annotations

from pathlib import Path

import pytest

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
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return tmp_path


def names(folder: Path, files: list[Path]) -> list[str]:
    return [str(file.relative_to(folder)) for file in files]


def test_folder_gives_its_recognised_files_sorted_and_no_hidden_ones(folder: Path) -> None:
    assert names(folder, resolve(str(folder))) == ["a.jsonl", "b.txt", "h.PARQUET", "sub/c.md", "sub/deep/d.py"]


def test_glob_crosses_folders_and_takes_any_suffix(folder: Path) -> None:
    assert names(folder, resolve(f"{folder}/sub/**/*")) == ["sub/c.md", "sub/deep/d.py", "sub/e.bin"]


def test_patterns_keep_their_order_and_a_file_named_twice_is_read_once(folder: Path) -> None:
    assert names(folder, resolve([f"{folder}/b.txt", f"{folder}/*.*", f"{folder}/sub/../b.txt"])) == [
        "b.txt",
        "a.jsonl",
        "h.PARQUET",
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
