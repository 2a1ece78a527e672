from __future__ import annotations

import json
import os
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from danlu.engine import checkpoint
from danlu.engine.checkpoint import Checkpoints
from danlu.engine.staging import Snapshot
from danlu.errors import CheckpointError, RunError

from .runs import flip


def snapshot(step: int, size: int = 8) -> Snapshot:
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "model": {"w": torch.randn(size, generator=generator), "b": torch.randn(2, 3, generator=generator).t()},
        "optimizer": {"w/exp_avg": torch.randn(size, generator=generator)},
    }
    return Snapshot(step, tensors, {"progress": {"step": step, "share": 1 / 3}, "source": {"corpus": "火"}})


def same(found: Snapshot, step: int, size: int = 8) -> bool:
    expected = snapshot(step, size)
    equal = [
        torch.equal(found.tensors[file][name], tensor)
        for file, tensors in expected.tensors.items()
        for name, tensor in tensors.items()
    ]
    return all(equal) and (found.step, found.state) == (expected.step, expected.state)


def saved(folder: Path, *steps: int, best: int | None = None, keep: int = 10, size: int = 8) -> Checkpoints:
    checkpoints = Checkpoints(folder)
    for step in steps:
        checkpoints.save(snapshot(step, size), best=step == best, keep=keep)
    return checkpoints


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """Every write past this many bytes of a file fails with a real OSError, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path / "a", 3, 7)
    assert checkpoints.steps() == [3, 7]
    assert same(checkpoints.load(), 7)
    assert same(checkpoints.load(3), 3)


def test_the_newest_and_the_best_are_kept_and_pointed_at(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in range(1, 8):
        checkpoints.save(snapshot(step), best=step in (1, 3), keep=2)
        assert (tmp_path / "last").resolve().name == f"step-{step:08d}"
    assert checkpoints.steps() == [3, 6, 7]
    assert (tmp_path / "best").resolve().name == "step-00000003"
    assert names(tmp_path) == ["best", "last", "step-00000003", "step-00000006", "step-00000007"]
    assert same(checkpoints.load(3), 3)


def test_taking_up_an_earlier_step_forgets_the_later_ones(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2, 3, best=3)
    (tmp_path / ".unfinished-step-00000009").mkdir()
    (tmp_path / ".removed-step-00000008").mkdir()
    checkpoints.forget_after(2, best=1)
    assert names(tmp_path) == ["best", "last", "step-00000001", "step-00000002"]
    assert (tmp_path / "last").resolve().name == "step-00000002"
    assert (tmp_path / "best").resolve().name == "step-00000001"
    checkpoints.forget_after(1, best=None)
    assert names(tmp_path) == ["last", "step-00000001"]


def test_a_flipped_bit_is_found_anywhere(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 4, 6)
    folder = tmp_path / "step-00000006"
    for file in sorted(folder.iterdir()):
        for offset in range(0, file.stat().st_size, 3):
            flip(file, offset, bit=offset % 8)
            with pytest.raises(CheckpointError) as caught:
                checkpoints.load()
            assert str(folder) in str(caught.value)
            if file.name != "manifest.json":
                assert str(caught.value).startswith(f"{file}: the file is altered: its checksum differs.")
            flip(file, offset, bit=offset % 8)
    assert same(checkpoints.load(), 6)


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("damage", ["absent", "empty", "cut short", "longer"])
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_offered(tmp_path: Path, name: str, damage: str) -> None:
    checkpoints = saved(tmp_path, 4, 6)
    file = tmp_path / "step-00000006" / name
    content = file.read_bytes()
    if damage == "absent":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "cut short": content[:-1], "longer": content + b" "}[damage])
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load()
    assert str(caught.value).startswith(f"{file}: ")
    assert str(caught.value).endswith("Resume from the one before with --step 4.")
    assert same(checkpoints.load(4), 4)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"files": {}}',
        b'{"version": 1}',
        b'{"version": 1, "files": []}',
        b'{"version": 1, "files": {}}',
        b'{"version": 1, "files": {"state.json": 5}}',
        b'{"version": 1, "files": {"state.json": {"bytes": "many", "sha256": ""}}}',
        b"[" * 100_000,
    ],
    ids=lambda content: repr(content[:40]),
)
def test_a_manifest_of_garbage_is_altered(tmp_path: Path, content: bytes) -> None:
    checkpoints = saved(tmp_path, 4)
    (tmp_path / "step-00000004" / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"the manifest is altered\. There is none before it\."):
        checkpoints.load()


def test_a_manifest_of_another_format_says_so(tmp_path: Path) -> None:
    saved(tmp_path, 4)
    file = tmp_path / "step-00000004" / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": 2}, indent=1))
    with pytest.raises(CheckpointError, match="its format is 2, not 1"):
        verify(file.parent)


def test_a_step_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint of step 5\. There are: \[3, 7\]\."):
        saved(tmp_path / "a", 3, 7).load(5)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        Checkpoints(tmp_path / "b").load()


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2, best=1)
    before = names(tmp_path)
    for size in (10, 5_000, 60_000):
        with no_file_larger_than(size), pytest.raises(RunError) as caught:
            checkpoints.save(snapshot(3, size=20_000), best=True, keep=1)
        words = str(caught.value)
        assert words.startswith(f"{tmp_path / 'step-00000003'}: the checkpoint of step 3 could not be written: ")
        assert words.endswith("The checkpoint of step 2 is whole.")
        assert "File too large" in words
        assert "\n" not in words
        assert names(tmp_path) == before
        assert same(checkpoints.load(), 2)
    checkpoints.save(snapshot(3, size=20_000), best=False, keep=2)
    assert checkpoints.steps() == [1, 2, 3]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"could not be written: Not a directory\. There is none before it\."):
        saved(tmp_path / "file" / "checkpoints", 1)


class _Killed(BaseException):
    pass


CALLS = [(os, "replace"), (os, "fsync"), (os, "unlink"), (checkpoint, "save_file"), (checkpoint, "_digest")]


@pytest.mark.parametrize("seed", range(12))
def test_an_end_at_any_call_leaves_whole_checkpoints(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off before any of the calls that reach the disk, and taken up again, as often as it takes."""
    randomness = random.Random(seed)
    done, left = 0, 0

    def cut_off(module: object, name: str) -> None:
        plain = getattr(module, name)

        def call(*args: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                raise _Killed
            return plain(*args, **options)

        monkeypatch.setattr(module, name, call)

    for module, name in CALLS:
        cut_off(module, name)
    while done < 6:
        left = randomness.randrange(1, 40)
        try:
            checkpoints = Checkpoints(tmp_path)
            if done:
                checkpoints.forget_after(done, best=None)
            while done < 6:
                checkpoints.save(snapshot(done + 1), best=randomness.random() < 0.5, keep=1)
                done += 1
        except _Killed:
            pass
        left = 0
        found = Checkpoints(tmp_path)
        for step in found.steps():
            assert same(found.load(step), step)
        assert max(found.steps(), default=0) in (done, done + 1)
        done = max(found.steps(), default=0)


def test_nothing_of_a_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".json", ".safetensors"}
    for file in files:
        start = file.read_bytes()[:9]
        assert not start.startswith((b"\x80", b"PK"))
        assert start[8:9] == b"{" if file.suffix == ".safetensors" else start[:1] == b"{"
