from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from danlu.engine.lock import locked
from danlu.engine.ranks import Ranks
from danlu.errors import RunError

from .threads import Threads

HOLD = """
import sys, time
from pathlib import Path
from danlu.engine.lock import locked
with locked(Path(sys.argv[1])) as note:
    assert note is None
    if len(sys.argv) > 2:
        import os
        if not os.fork():
            print("held", flush=True)
            time.sleep(60)
    else:
        print("held", flush=True)
    sys.stdin.read()
print("done", flush=True)
"""


def holder(run: Path, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_while_another_process_holds_it_it_is_refused_and_then_it_is_free(tmp_path: Path) -> None:
    process = holder(tmp_path)
    with pytest.raises(RunError) as caught, locked(tmp_path):
        raise AssertionError("two hold it")
    expected = (
        rf"{re.escape(str(tmp_path))}: the run directory is in use by process {process.pid} "
        rf"\(since \d\d:\d\d on host {re.escape(socket.gethostname())}\)\. "
        rf"Wait for it, or end it: kill {process.pid}\."
    )
    assert re.fullmatch(expected, str(caught.value))
    out, _ = process.communicate("", timeout=30)
    assert out == "done\n"
    with locked(tmp_path) as note:
        assert note is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("with_child", [False, True], ids=["alone", "with a child that lives on"])
def test_it_ends_with_its_owner_even_when_that_is_killed(tmp_path: Path, with_child: bool) -> None:
    process = holder(tmp_path, *(["fork"] if with_child else []))
    try:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == process.pid
        with locked(tmp_path) as note:
            assert note is None
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    finally:
        if with_child:
            os.killpg(process.pid, signal.SIGKILL)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def test_it_is_not_taken_twice_by_one_process(tmp_path: Path) -> None:
    with locked(tmp_path):
        with pytest.raises(RunError, match=f"in use by process {os.getpid()} "), locked(tmp_path):
            pass
        with pytest.raises(RunError, match="in use"), locked(tmp_path):  # the refusal has not loosened it
            pass
    with locked(tmp_path):
        pass


def test_it_is_given_back_when_what_is_done_within_fails(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="within"), locked(tmp_path):
        raise ValueError("within")
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        pass


def test_who_waited_on_a_file_that_was_removed_does_not_hold_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner ends between another's opening of the file and its locking of it; a third has made a new file."""
    import fcntl

    flock, turns = fcntl.flock, []

    def late(file: object, operation: int) -> None:
        if not turns:
            turns.append(1)
            (tmp_path / ".lock").unlink()
            (tmp_path / ".lock").write_text("another's")
        flock(file, operation)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
        assert turns


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "the run directory is in use by another process. Wait for it, or end it."),
        ('{"pid": 1', "the run directory is in use by another process. Wait for it, or end it."),
        (
            json.dumps({"pid": 7, "host": "elsewhere", "since": time.mktime((2026, 3, 1, 12, 3, 0, 0, 0, -1))}),
            "the run directory is in use by process 7 (since 2026-03-01 12:03 on host elsewhere). "
            "Wait for it, or end it there.",
        ),
    ],
)
def test_what_is_told_of_the_owner(tmp_path: Path, content: str, words: str) -> None:
    with locked(tmp_path):
        (tmp_path / ".lock").write_text(content)
        with pytest.raises(RunError) as caught, locked(tmp_path):
            pass
    assert str(caught.value) == f"{tmp_path}: {words}"


def failing(number: int) -> Callable[[object, int], None]:
    def flock(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    return flock


def test_a_file_system_without_locks_is_said_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", failing(errno.ENOSYS))
    with locked(tmp_path) as note:
        assert note is not None
        assert "its file system has no locks" in note


def test_what_cannot_be_locked_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match=r"the run directory cannot be locked: No such file"), locked(tmp_path / "no"):
        pass
    monkeypatch.setattr("fcntl.flock", failing(errno.EIO))
    with pytest.raises(RunError, match=r"the run directory cannot be locked: Input/output error"), locked(tmp_path):
        pass


def test_ranks_that_do_not_lead_hold_nothing_and_hear_what_became_of_it(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> list[str]:
        with locked(tmp_path, ranks) as note:
            assert note is None
            ranks.wait()
            there = [file.name for file in tmp_path.iterdir()]
            ranks.wait()
            return there

    def told(ranks: Ranks) -> list[str]:
        found = work(ranks)
        ranks.wait()
        return found

    assert Threads.run(3, told) == [[".lock"]] * 3
    with locked(tmp_path):
        errors = Threads.run(3, work)
    assert all(isinstance(error, RunError) and error.told for error in errors)
    assert len({str(error) for error in errors}) == 1
    assert f"in use by process {os.getpid()} " in str(errors[0])


def test_where_its_words_cannot_be_written_it_is_a_lock_all_the_same(tmp_path: Path) -> None:
    bound = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, bound[1]))  # as on a full disk
    try:
        with locked(tmp_path) as note:
            resource.setrlimit(resource.RLIMIT_FSIZE, bound)
            assert note is None
            assert not (tmp_path / ".lock").read_bytes()
            with pytest.raises(RunError, match=r"in use by another process"), locked(tmp_path):
                raise AssertionError("two hold it")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, bound)
    assert not list(tmp_path.iterdir())
