"""Frames as an animated GIF, small enough to stand in a page: fewer pixels, one palette, no frame more than is seen."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from danlu.errors import RunError, UnsupportedError

if TYPE_CHECKING:
    from PIL import Image

MOST_FRAMES = 300
"""Ten seconds of smooth motion; of longer episodes every so many frames are shown, each for as much longer."""
LONGEST_SIDE = 400
"""Pixels: as wide as a column of a report."""
_SMOOTH, _SLOWEST = 30.0, 4.0
"""Frames a second: what the eye takes for motion, and what it can follow one by one."""
_SECONDS = 4.0
"""A short episode is shown slowly enough to be followed."""
_HOLD = 1000
"""Milliseconds for which the end is shown, before it begins again."""
_LOOKED_AT = 400_000
"""Pixels: a quarter of a second's work, and several of everything that can be seen."""
_TICK = 10
"""Milliseconds that a GIF counts in."""
_SHORTEST = 2
"""Ticks; browsers take shorter ones for a tenth of a second."""


def write_gif(path: Path, frames: Sequence[UInt8[np.ndarray, "H W 3"]], frames_per_second: float | None = None) -> None:
    """Write frames, the last of which is shown for longer, as a GIF that begins again.

    Args:
        path: the file, which is replaced.
        frames: all of one size.
        frames_per_second: None for one at which they can be followed.

    Raises:
        UnsupportedError: when Pillow is not installed.
        RunError: when there is no frame, or the file cannot be written.
    """
    gif = gif_bytes(frames, frames_per_second)
    try:
        path.write_bytes(gif)
    except OSError as error:
        raise RunError(f"it cannot be written: {error.strerror}", where=path) from error


def gif_bytes(frames: Sequence[UInt8[np.ndarray, "H W 3"]], frames_per_second: float | None = None) -> bytes:
    """The same, as the file's content.

    Args:
        frames: all of one size.
        frames_per_second: None for one at which they can be followed.

    Raises:
        UnsupportedError: when Pillow is not installed.
        RunError: when there is no frame.
    """
    image = _library()
    if not len(frames):
        raise RunError("the environment showed no frame to make a GIF of")
    every = -(-len(frames) // MOST_FRAMES)
    kept = [*frames[:-1:every], frames[-1]]
    factor = max(1, -(-max(kept[0].shape[:2]) // LONGEST_SIDE))
    images = [image.fromarray(np.ascontiguousarray(frame)).reduce(factor) for frame in kept]
    palette = _palette(images)
    first, *rest = [each.quantize(palette=palette, dither=image.Dither.NONE) for each in images]
    ticks = max(_SHORTEST, round(1000 / _TICK / (frames_per_second or _followed(len(frames))) * every))
    durations = [_TICK * ticks] * len(rest) + [_HOLD]
    out = io.BytesIO()
    first.save(out, "GIF", save_all=True, append_images=rest, duration=durations, loop=0, optimize=False)
    return out.getvalue()


def _followed(num: int) -> float:
    """Frames a second."""
    return min(_SMOOTH, max(_SLOWEST, num / _SECONDS))


def _palette(images: Sequence[Image.Image]) -> Image.Image:
    """One palette for all frames, by some pixels of each, so that what appears only once has its colour too."""
    width, height = images[0].size
    apart = max(1, round((len(images) * width * height / _LOOKED_AT) ** 0.5))
    some = np.concatenate([np.asarray(each)[::apart, ::apart] for each in images])
    return _library().fromarray(some).quantize(256)


def _library() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        do = "Install it with: pip install 'danlu[play]'."
        raise UnsupportedError("Pillow, which writes GIFs, is not installed", do=do) from error
    return Image
