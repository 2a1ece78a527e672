"""Runs that are killed at random moments, and taken up each time: all of them end in the same bytes."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.lives import STEPS, Trials

TRIALS = 120


def test_every_run_that_was_killed_ends_as_the_run_that_was_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, twice or three times, by the clock and at any of the things it does to files."""
    trials = Trials(tmp_path)
    with ThreadPoolExecutor(2) as two:
        found = list(two.map(lambda seed: trials.trial(seed, deaths=1 + seed % 3), range(TRIALS)))
    moments = Counter(itertools.chain.from_iterable(found))
    with capsys.disabled():
        print(json.dumps({"kills": moments.total(), "by the last checkpoint": dict(sorted(moments.items()))}))
    assert moments.total() == 2 * TRIALS
    assert {0, STEPS} < {*moments}, "none died before the first checkpoint, or none at the end"
    assert len(moments) > STEPS // 3


def test_recorded_at_every_update_and_kept_once(tmp_path: Path) -> None:
    """A checkpoint after each update, so that one is always being written, and removed."""
    trials = Trials(tmp_path, checkpoint_every=1, keep_checkpoints=1, eval_every=3)
    with ThreadPoolExecutor(2) as two:
        found = list(two.map(lambda seed: trials.trial(seed, deaths=2), range(20)))
    assert sum(map(len, found)) == 40
