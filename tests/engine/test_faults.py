"""Faults of a run of one process: it ends in one sentence, and goes on to the bit."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

import danlu
from commands import Say
from danlu.engine.guards.clock import Clock
from danlu.errors import DanluError

from .faults import encoders, part, processes_for_little, stop_encoders
from .lives import Trials
from .runs import QWEN3, assert_same_run, assert_same_tensors, checkpoints, lines, recipe, state, step_folder, steps
from .test_checkpoint import no_file_larger_than
from .test_resume import Ended, Listener, end


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Trials:
    return Trials(tmp_path_factory.mktemp("trials"))


@pytest.mark.parametrize("seed", range(3))
def test_killed_twice_anywhere_it_is_the_run_that_was_left_alone(trials: Trials, seed: int) -> None:
    assert len(trials.trial(seed, deaths=2)) == 2


def made(folder: Path, **run: Any) -> dict[str, Any]:
    return recipe(folder, QWEN3, **{"eval_every": 4, "checkpoint_every": 4, **run})


def failed(act: Any, *arguments: Any, **named: Any) -> str:
    """The one sentence that it ends with."""
    with pytest.raises(DanluError) as caught:
        act(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def resumed(run: Path, *overrides: str, **named: Any) -> None:
    """It goes on, and is the run that nothing befell."""
    assert danlu.resume(run, *overrides, **named).reason == "done"
    straight = danlu.train(run / "recipe.yaml", f"run.out={run.with_name('straight')}").path
    assert_same_run(run, straight)
    last = steps(straight)[-1]
    assert [step for step in steps(run) if step] == list(range(1, last + 1))
    assert_same_tensors(state(run, last), state(straight, last))


def test_a_run_whose_time_is_up_ends_with_the_status_of_timeout_and_says_how_to_go_on(
    tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, run = tmp_path / "recipe.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump(made(tmp_path, max_time="1h")), encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(Clock, "over", lambda clock: clock._step >= 5)
        ended = say("train", file)
    assert (ended.status, ended.err) == (124, "")
    assert (ended.rows[-1]["reason"], ended.rows[-1]["go_on"]) == ("max_time", f"danlu resume {run}")
    assert checkpoints(run) == [4, 6]
    resumed(run, "run.max_time=null")


def test_a_run_without_a_checkpoint_says_what_to_do(tmp_path: Path, say: Say) -> None:
    with pytest.raises(Ended):
        danlu.train(made(tmp_path), listeners=[Listener(3, end)])
    run = tmp_path / "run"
    answer = say("resume", run)
    assert (answer.status, answer.out, answer.err) == (
        1,
        "",
        f"danlu: {run}: the run ended before its first checkpoint. "
        f"Begin it anew elsewhere: danlu train {run / 'recipe.yaml'} run.out=DIR.\n",
    )
    assert danlu.train(run / "recipe.yaml", f"run.out={tmp_path / 'anew'}").reason == "done"


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_room_is_asked_for_before_a_checkpoint_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"

    def fill() -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 30, 1 << 30, 9 << 10))

    words = failed(danlu.train, made(tmp_path), listeners=[Listener(6, fill)])
    found = re.fullmatch(r"(.*): a checkpoint needs (\d+) KiB, and the disk has 9 KiB left\. (.*)", words)
    assert found is not None
    assert (found[1], found[3]) == (str(run / "checkpoints"), "Free some space, then: danlu resume.")
    written = sum(file.stat().st_size for file in step_folder(run, 4).glob("*.safetensors"))
    assert int(found[2]) << 10 == pytest.approx(written, rel=0.05)
    assert sorted(entry.name for entry in (run / "checkpoints").iterdir()) == ["best", "last", "step-00000004"]
    monkeypatch.undo()
    resumed(run)


def test_a_page_that_has_no_room_is_one_sentence(tmp_path: Path) -> None:
    with no_file_larger_than(100_000):
        words = failed(danlu.train, made(tmp_path))
    assert words == f"{tmp_path / 'run' / 'data.html'}: the page cannot be written (File too large). Give another path."


def test_a_full_disk_when_a_run_is_taken_up_loses_nothing(tmp_path: Path) -> None:
    with pytest.raises(Ended):
        danlu.train(made(tmp_path), listeners=[Listener(6, end)])
    run = tmp_path / "run"
    before = {name: (run / name).read_bytes() for name in ("metrics.jsonl", "recipe.yaml")}
    with no_file_larger_than(900):
        assert "cannot be written" in failed(danlu.resume, run) or "could not be written" in failed(danlu.resume, run)
    assert {name: (run / name).read_bytes() for name in before} == before
    resumed(run)


def several(folder: Path, **run: Any) -> dict[str, Any]:
    """A run over several files, each of which is encoded for itself, by processes."""
    one = made(folder, checkpoint_every=100, steps=10, **run)
    one["data"] |= {"train": [str(part(folder, number)) for number in range(6)], "held_out": None, "workers": 2}
    return one


def test_a_process_that_encodes_and_stalls_ends_the_run_with_what_was_learned(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with processes_for_little():
        words = failed(danlu.train, several(tmp_path), listeners=[Listener(2, stop_encoders)])
        assert encoders() == []
        assert words.startswith(str(tmp_path / "part"))
        assert words.endswith(
            "jsonl:1: the documents from here on were not encoded within 1 s: a process has stalled. "
            "Go on by: danlu resume RUN; if it happens again, with data.workers=1."
        )
        assert checkpoints(run) == [steps(run)[-1]]
        resumed(run, "data.workers=1")


def test_a_process_that_encodes_and_dies_ends_the_run_with_what_was_learned(tmp_path: Path) -> None:
    def kill() -> None:
        for pid in encoders():
            os.kill(pid, signal.SIGKILL)

    run = tmp_path / "run"
    with processes_for_little():
        words = failed(danlu.train, several(tmp_path), listeners=[Listener(step, kill) for step in range(2, 6)])
        assert words.startswith("a process that encodes documents died. Set data.workers=1; ")
        assert checkpoints(run) == [steps(run)[-1]]
        resumed(run, "data.workers=1")


def test_who_comes_to_a_run_that_goes_is_sent_away_and_it_goes_on(tmp_path: Path, say: Say) -> None:
    run, told = tmp_path / "run", []

    def come() -> None:
        told.extend([say("resume", run), say("train", run / "recipe.yaml")])

    assert danlu.train(made(tmp_path), listeners=[Listener(6, come)]).reason == "done"
    resume, train = told
    assert (resume.status, resume.out) == (1, "")
    assert resume.err.startswith(f"danlu: {run}: the run directory is in use by process {os.getpid()} (since ")
    assert resume.err.endswith(f"Wait for it, or end it: kill {os.getpid()}.\n")
    assert (train.status, train.out) == (1, "")
    assert train.err.startswith(f"danlu: {run}: the run directory exists. ")
    resumed(run)
    assert [event["kind"] for event in lines(run / "events.jsonl")].count("resume") == 1
