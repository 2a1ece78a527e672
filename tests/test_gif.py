from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest

from danlu.errors import RunError, UnsupportedError
from danlu.gif import LONGEST_SIDE, MOST_FRAMES, gif_bytes, write_gif

image = pytest.importorskip("PIL.Image")
sequence = pytest.importorskip("PIL.ImageSequence")


def moving(num: int, height: int = 60, width: int = 90) -> list[np.ndarray]:
    """A red square on grey that moves to the right by a pixel a frame."""
    frames = []
    for at in range(num):
        frame = np.full((height, width, 3), 200, np.uint8)
        left = at % (width - 20)
        frame[20:40, left : left + 20] = (220, 30, 40)
        frames.append(frame)
    return frames


def decoded(gif: bytes) -> tuple[list[np.ndarray], list[int]]:
    read = image.open(io.BytesIO(gif))
    frames = [(np.asarray(frame.convert("RGB")), frame.info["duration"]) for frame in sequence.Iterator(read)]
    return [pixels for pixels, _ in frames], [duration for _, duration in frames]


def test_frames_come_back_as_they_were() -> None:
    shown = moving(12)
    frames, durations = decoded(gif_bytes(shown))
    assert len(frames) == 12
    for before, after in zip(shown, frames, strict=True):
        assert np.abs(before.astype(int) - after).max() <= 4
    assert durations[:-1] == [250] * 11
    assert durations[-1] == 1000


def test_a_long_episode_is_shown_in_part_and_as_fast() -> None:
    shown = moving(1000)
    frames, durations = decoded(gif_bytes(shown))
    assert 200 < len(frames) <= MOST_FRAMES + 1
    assert np.abs(shown[-1].astype(int) - frames[-1]).max() <= 4
    assert 1000 / 34 < sum(durations[:-1]) / 1000 < 1000 / 24


def test_a_large_picture_becomes_small_by_whole_steps() -> None:
    frames, _ = decoded(gif_bytes(moving(3, 900, 1100)))
    assert frames[0].shape == (300, 367, 3)
    assert max(frames[0].shape) <= LONGEST_SIDE


def test_it_begins_again_for_ever(tmp_path: Path) -> None:
    write_gif(tmp_path / "a.gif", moving(3))
    with image.open(tmp_path / "a.gif") as read:
        assert read.info["loop"] == 0


def test_what_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="showed no frame"):
        gif_bytes([])
    with pytest.raises(RunError, match="cannot be written"):
        write_gif(tmp_path / "absent" / "a.gif", moving(2))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'danlu\[play\]'"):
        gif_bytes(moving(2))


def test_an_episode_is_as_fast_as_its_environment_says() -> None:
    _, durations = decoded(gif_bytes(moving(20), 50))
    assert durations[:-1] == [20] * 19
