"""Guards of time, room and data."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from pydantic import ValidationError

from danlu.engine.guards.clock import Clock
from danlu.engine.guards.config import GuardConfig
from danlu.engine.guards.disk import crowded, free, room
from danlu.engine.guards.repeats import Repeats
from danlu.errors import RunError

from .runs import experiment, recipe


class Time:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def turn(self, clock: Clock, step: int, seconds: float, saving: float = 0.0) -> str | None:
        self.now += seconds + saving
        return clock.turned(step, saving=saving)


def test_it_says_once_and_early_that_the_time_will_not_suffice() -> None:
    time = Time()
    clock = Clock(7200, 9500, now=time)
    told = [time.turn(clock, step, 30.0 if step == 1 else 1.25) for step in range(1, 60)]
    assert [step for step, sentence in enumerate(told, 1) if sentence] == [7]
    assert told[6] == (
        "at 1.25 s a step the run needs 3 h 18 min, and run.max_time is 2 h 0 min: "
        "it will end after about step 5,737, to be gone on with by danlu resume"
    )


def test_where_it_said_it_would_end_it_ends() -> None:
    """The step at which it is over is about the one that was foretold, and the checkpoint is in time."""
    time = Time()
    clock = Clock(100, 400, now=time)
    step, foretold = 50, None
    while not clock.over():
        step += 1
        sentence = time.turn(clock, step, 0.5 + 0.1 * (step % 3), saving=3.0 if step % 40 == 0 else 0.0)
        foretold = sentence or foretold
    assert foretold is not None
    assert int(foretold.split("about step ")[1].split(",")[0]) == pytest.approx(step, abs=25)
    spent = time.now - 1000
    assert spent + 3.0 <= 100
    assert spent + 3.0 + 2 * 0.7 > 100


def test_a_run_that_will_be_done_in_time_is_told_nothing_and_ended_by_nothing() -> None:
    time = Time()
    clock = Clock(100, 90, now=time)
    assert not any(time.turn(clock, step, 1.0) for step in range(1, 91))
    assert not clock.over()
    time.now += 9.5
    assert clock.over()


def test_time_that_went_before_the_first_update_counts_and_what_is_known_late_is_told_late() -> None:
    time = Time()
    clock = Clock(100, None, began=920.0, now=time)
    assert not clock.over()
    assert time.turn(clock, 1, 19.0) is None
    assert not clock.over()
    time.now += 2.0
    assert clock.over()
    clock = Clock(100, 60, now=time)
    told = [time.turn(clock, step, 1.0 if step < 20 else 3.0) for step in range(1, 46)]
    assert sum(sentence is not None for sentence in told) == 1
    assert not any(told[:30])


def test_without_a_bound_there_is_no_clock() -> None:
    def never() -> float:
        calls.append(1)
        return 0.0

    calls: list[int] = []
    clock = Clock(None, 10, now=never)
    asked = len(calls)
    assert clock.turned(1) is None
    assert not clock.over()
    assert len(calls) == asked


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_checkpoint_without_room_is_refused_with_both_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def usage(path: Path) -> Usage:
        asked.append(path)
        return Usage(100 << 30, 99 << 30, 1 << 30)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    folder = tmp_path / "run" / "checkpoints"
    room(folder, 1 << 30)
    with pytest.raises(RunError) as caught:
        room(folder, 3 << 30)
    assert str(caught.value) == (
        f"{folder}: a checkpoint needs 3 GiB, and the disk has 1 GiB left. Free some space, then: danlu resume."
    )
    assert asked == [tmp_path] * 2
    assert crowded(folder, 1 << 28, keep=2) is None
    assert crowded(folder, 300 << 20, keep=2) == (
        f"{folder} will need room for 4 more checkpoints of 300 MiB, 1.17 GiB together, and the disk has 1 GiB left: "
        "free some, or lower run.keep_checkpoints"
    )
    assert crowded(folder, 300 << 20, keep=2, present=1) is None
    told = crowded(folder, 2 << 30, keep=2, present=9)
    assert told is not None
    assert "for 1 more checkpoint of 2 GiB" in told


def test_room_is_that_of_the_disk(tmp_path: Path) -> None:
    assert free(tmp_path / "not" / "there") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
    with pytest.raises(RunError, match="a checkpoint needs .* TiB, and the disk has"):
        room(tmp_path, 10**22)


@pytest.mark.parametrize("samples", [5, 7])
def test_data_that_begin_again_unasked_are_told_of_once(tmp_path: Path, samples: int) -> None:
    """Against the samples that a source gives."""
    made = recipe(tmp_path, steps=30)
    made["data"]["step_samples"] = samples
    parts = experiment(made)
    repeats, seen, again, told = Repeats(None, steps=30), set(), [], []
    for step in range(1, 31):
        drawn = [sample.id for sample in parts.source.draw()]
        again += [step] if seen & set(drawn) else []
        seen |= set(drawn)
        told.append(repeats.note(step, parts.source.epochs))
    assert 1 < again[0] < 25
    assert [step for step, sentence in enumerate(told, 1) if sentence] == again[:1]
    passes = 30 * samples / len(seen)
    assert told[again[0] - 1] == (
        f"the data are read a second time from step {again[0]} on, about {passes:.1f} times in all: "
        "give more data, or say run.epochs, if that is not meant"
    )


def test_data_that_begin_again_as_asked_or_before_this_session_are_not_told_of() -> None:
    assert Repeats(2).note(9, 1.5) is None
    before, not_yet = Repeats(None), Repeats(None)
    before.resumed(1.2)
    assert before.note(9, 1.5) is None
    not_yet.resumed(0.9)
    assert not_yet.note(9, 1.0) is None
    told = not_yet.note(9, 1.1)
    assert told is not None
    assert "from step 9 on: " in told


def test_data_that_end_early_are_told_of() -> None:
    assert Repeats.ended(7, 1.0) is None
    assert Repeats.ended(7, 0.4) == "the data ended after 7 updates, before the run was to"


def test_everything_is_watched_by_default_and_every_field_is_documented() -> None:
    guards = GuardConfig()
    assert (guards.nonfinite, guards.spike) == ("stop", "warn")
    assert guards.unmoved_after
    assert guards.same_weights
    assert all((info.description or "").endswith(".") for info in GuardConfig.model_fields.values())
    for field, value in {"nonfinite": "off", "spike": "stop", "spike_window": 3, "most_skips": 0}.items():
        with pytest.raises(ValidationError):
            GuardConfig(**{field: value})
