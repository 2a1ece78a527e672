from __future__ import annotations

import hashlib
import json
import os
import platform
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from danlu.engine import staging
from danlu.engine.checkpoint import Checkpoints
from danlu.engine.manifest import FORMAT
from danlu.engine.staging import Snapshot
from danlu.errors import CheckpointError, RunError, UnsupportedError

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
    checkpoints.wait()
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
        checkpoints.wait()
        assert (tmp_path / "last").resolve().name == f"step-{step:08d}"
    assert checkpoints.steps() == [3, 6, 7]
    assert (tmp_path / "best").resolve().name == "step-00000003"
    assert names(tmp_path) == ["best", "last", "step-00000003", "step-00000006", "step-00000007"]
    assert same(checkpoints.load(3), 3)


def test_taking_up_an_earlier_step_forgets_the_later_ones(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2, 3, best=3)
    (tmp_path / ".unfinished-step-00000009").mkdir()
    (tmp_path / ".removed-step-00000008").mkdir()
    checkpoints.forget_after(2, best=1, keep=10)
    assert names(tmp_path) == ["best", "last", "step-00000001", "step-00000002"]
    assert (tmp_path / "last").resolve().name == "step-00000002"
    assert (tmp_path / "best").resolve().name == "step-00000001"
    checkpoints.forget_after(1, best=None, keep=10)
    assert names(tmp_path) == ["last", "step-00000001"]


def test_taking_up_a_run_removes_what_a_kill_kept_from_being_removed(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, 3, 4).forget_after(4, best=1, keep=2)
    assert names(tmp_path) == ["best", "last", *(f"step-0000000{step}" for step in (1, 3, 4))]


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
        b'{"version": 2}',
        b'{"version": 2, "files": []}',
        b'{"version": 2, "files": {}}',
        b'{"version": 2, "files": {"state.json": 5}}',
        b'{"version": 2, "files": {"state.json": {"bytes": "many", "xxh3": ""}}}',
        b"[" * 100_000,
    ],
    ids=lambda content: repr(content[:40]),
)
def test_a_manifest_of_garbage_is_altered(tmp_path: Path, content: bytes) -> None:
    checkpoints = saved(tmp_path, 4)
    (tmp_path / "step-00000004" / "manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"the manifest is altered\. There is none before it\."):
        checkpoints.load()


def signed(manifest: dict[str, object]) -> str:
    """A manifest as it is documented: its last entry is the checksum of the text without it."""
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    own = hashlib.sha256(json.dumps(body, indent=1).encode()).hexdigest()
    return json.dumps({**body, "sha256": own}, indent=1)


def test_a_manifest_names_the_format_and_what_wrote_it(tmp_path: Path) -> None:
    saved(tmp_path, 4)
    text = (tmp_path / "step-00000004" / "manifest.json").read_text()
    manifest = json.loads(text)
    assert text == signed(manifest)
    assert manifest["version"] == FORMAT
    packages = {name: version(name) for name in ("danlu", "torch", "safetensors")}
    assert manifest["written_by"] == {"python": platform.python_version(), **packages}
    assert manifest["files"].keys() == {"state.json", "model.safetensors", "optimizer.safetensors"}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"version": 7, "written_by": {"danlu": "9.1"}, "files": []}, "7, written by Danlu 9.1, not 2"),
        ({"version": 7, "things": []}, "7, not 2"),
    ],
)
def test_a_newer_format_says_so(tmp_path: Path, other: dict[str, object], words: str) -> None:
    checkpoints = saved(tmp_path, 3, 4)
    folder = tmp_path / "step-00000004"
    (folder / "manifest.json").write_text(signed(other))
    with pytest.raises(CheckpointError) as caught:
        checkpoints.open()
    assert str(caught.value) == f"{folder}: its format is {words}. Use the version of Danlu that wrote it."


def test_the_first_format_says_so(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 4)
    (tmp_path / "step-00000004" / "manifest.json").write_text(json.dumps({"version": 1, "files": {}}, indent=1))
    with pytest.raises(CheckpointError, match="its format is 1, not 2"):
        checkpoints.open()


def test_a_step_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint of step 5\. There are: \[3, 7\]\."):
        saved(tmp_path / "a", 3, 7).load(5)
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        Checkpoints(tmp_path / "b").load()


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2, best=1)
    before = names(tmp_path)
    for size in (10, 5_000, 60_000):
        with no_file_larger_than(size):
            checkpoints.save(snapshot(3, size=20_000), best=True, keep=1)
            with pytest.raises(RunError) as caught:
                checkpoints.wait()
        words = str(caught.value)
        assert words.startswith(f"{tmp_path / 'step-00000003'}: the checkpoint of step 3 could not be written: ")
        assert words.endswith("The checkpoint of step 2 is whole.")
        assert "File too large" in words
        assert "\n" not in words
        assert names(tmp_path) == before
        assert same(checkpoints.load(), 2)
    checkpoints.save(snapshot(3, size=20_000), best=False, keep=2)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2, 3]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"could not be written: Not a directory\. There is none before it\."):
        saved(tmp_path / "file" / "checkpoints", 1)


class _Killed(BaseException):
    pass


CALLS = [(os, "replace"), (os, "fsync"), (os, "unlink"), (staging, "save_tensors"), (hashlib, "file_digest")]


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
                checkpoints.forget_after(done, best=None, keep=10)
            while done < 6:
                checkpoints.save(snapshot(done + 1), best=randomness.random() < 0.5, keep=1)
                checkpoints.wait()
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


def test_what_changes_after_it_was_handed_over_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every round, since memory is used again; the writer waits until all has changed."""
    changed = threading.Event()
    plain = staging.save_tensors

    def late(*arguments: Any, **options: Any) -> None:
        assert changed.wait(10)
        plain(*arguments, **options)

    monkeypatch.setattr(staging, "save_tensors", late)
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        changed.clear()
        handed = snapshot(step)
        checkpoints.save(handed, best=False, keep=3)
        assert step not in [written.step for written in checkpoints.finished()]
        assert checkpoints.steps() == list(range(1, step))
        for tensors in handed.tensors.values():
            for tensor in tensors.values():
                tensor.fill_(-1)
        assert isinstance(handed.state["progress"], dict)
        handed.state["progress"]["step"] = -1
        changed.set()
        checkpoints.wait()
        assert same(checkpoints.load(), step)


def test_the_next_waits_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = staging.save_tensors

    def slow(*arguments: Any, **options: Any) -> None:
        time.sleep(0.1)
        plain(*arguments, **options)

    monkeypatch.setattr(staging, "save_tensors", slow)
    checkpoints = saved(tmp_path, 1, 2, 3)
    assert [same(checkpoints.load(step), step) for step in (1, 2, 3)] == [True] * 3


def test_it_is_told_once_what_came_to_be_there(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2, best=2)
    told = checkpoints.finished()
    assert [(w.step, w.path, w.best) for w in told] == [
        (1, tmp_path / "step-00000001", False),
        (2, tmp_path / "step-00000002", True),
    ]
    assert all(w.staged_seconds > 0 and w.written_seconds > 0 for w in told)
    assert checkpoints.finished() == []


def test_a_fault_is_known_without_waiting_and_raised_once(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    assert not checkpoints.failed()
    with no_file_larger_than(100):
        checkpoints.save(snapshot(2), best=True, keep=1)
        deadline = time.monotonic() + 10
        while not checkpoints.failed():
            assert time.monotonic() < deadline
            time.sleep(0.001)
    with pytest.raises(RunError, match=r"the checkpoint of step 2 could not be written: File too large"):
        checkpoints.save(snapshot(3), best=True, keep=1)
    assert not checkpoints.failed()
    assert [w.step for w in checkpoints.finished()] == [1]
    checkpoints.wait()
    checkpoints.save(snapshot(3), best=False, keep=2)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 3]


def test_a_build_of_torch_that_cannot_read_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = saved(tmp_path, 1)
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    with pytest.raises(UnsupportedError, match=r"^this build of torch has no torch\.distributed, by which checkpoints"):
        checkpoints.open()


def test_it_takes_as_many_bytes_as_it_says(tmp_path: Path) -> None:
    one = snapshot(1, size=100_000)
    saved(tmp_path, 1, size=100_000)
    taken = sum(file.stat().st_size for file in (tmp_path / "step-00000001").iterdir())
    assert taken == pytest.approx(one.num_bytes, rel=0.01)


def test_it_is_read_in_place(tmp_path: Path) -> None:
    found = saved(tmp_path, 5).open()
    expected = snapshot(5)
    for file, tensors in expected.tensors.items():
        assert {n: (t.shape, t.dtype) for n, t in found.specs(file).items()} == {
            n: (t.shape, t.dtype) for n, t in tensors.items()
        }
        own = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        found.read_into(file, own)
        assert all(torch.equal(own[name], tensor) for name, tensor in tensors.items())
    assert found.state == expected.state


OTHERS: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "shape": (
        {"w": torch.ones(9), "b": torch.ones(3, 2)},
        r"'w' is float32 \[8\] there and float32 \[9\] here\. Go on with",
    ),
    "dtype": ({"w": torch.ones(8), "b": torch.ones(3, 2).bfloat16()}, r"'b' is float32 \[3, 2\] there and bfloat16"),
    "more": ({"w": torch.ones(8), "b": torch.ones(3, 2), "c": torch.ones(1)}, "'c' is not there"),
    "fewer": ({"w": torch.ones(8)}, "'b' is not here"),
    "many": ({name: torch.ones(1) for name in "abcdef"}, r"'c' is not there; and 4 more\."),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_of_another_model_says_in_what_it_differs(tmp_path: Path, case: str) -> None:
    own, words = OTHERS[case]
    with pytest.raises(CheckpointError, match=rf"step 5 is of another model: .*{words}"):
        saved(tmp_path, 5).open().read_into("model", own)
    assert all(bool((tensor == 1).all()) for tensor in own.values())


def test_a_file_that_no_manifest_names_is_not_read(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 5)
    save_file({"w": torch.ones(8), "x": torch.ones(8)}, tmp_path / "step-00000005" / "model-00001-of-00001.safetensors")
    assert same(checkpoints.load(), 5)


def test_every_dtype_and_every_shape_comes_back(tmp_path: Path) -> None:
    kinds = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8)
    tensors = {f"{kind} {shape}": torch.ones(shape).to(kind) for kind in kinds for shape in ((), (0,), (3,), (2, 0, 4))}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(Snapshot(1, {"model": tensors, "optimizer": {}}, {}), best=False, keep=1)
    found = checkpoints.load()
    assert found.tensors.keys() == {"model", "optimizer"}
    assert not found.tensors["optimizer"]
    for name, tensor in tensors.items():
        assert found.tensors["model"][name].dtype == tensor.dtype
        assert torch.equal(found.tensors["model"][name], tensor), name


def test_the_files_of_one_process_are_plain(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    for file, tensors in snapshot(1).tensors.items():
        found = load_file(tmp_path / "step-00000001" / f"{file}.safetensors")
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


_KILLED = """
import os, sys, time
from pathlib import Path
from danlu.engine import staging
from danlu.engine.checkpoint import Checkpoints
from engine.test_checkpoint import snapshot

checkpoints = Checkpoints(Path(sys.argv[1]))
checkpoints.save(snapshot(1), best=True, keep=1)
checkpoints.wait()
plain = staging.save_tensors

def half(tensors, file, metadata):
    plain(tensors, file, metadata=metadata)
    file.write_bytes(file.read_bytes()[:-20])
    os.write(1, b"in the middle\\n")
    time.sleep(60)

staging.save_tensors = half
checkpoints.save(snapshot(2), best=True, keep=1)
os.write(1, b"the run goes on\\n")
time.sleep(60)
"""


def test_killed_while_one_is_written_the_one_before_is_whole(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _KILLED, str(tmp_path)]
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})
    assert process.stdout is not None
    assert {process.stdout.readline(), process.stdout.readline()} == {"in the middle\n", "the run goes on\n"}
    process.kill()
    process.communicate(timeout=60)
    assert names(tmp_path) == [".unfinished-step-00000002", "best", "last", "step-00000001"]
    checkpoints = Checkpoints(tmp_path)
    assert same(checkpoints.load(), 1)
    checkpoints.forget_after(1, best=1, keep=10)
    assert names(tmp_path) == ["best", "last", "step-00000001"]
