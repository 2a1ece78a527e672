"""Rows of a density as pixels: images side by side, and points that move."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from danlu.gif import write_gif
from danlu.parts.frame import Frame
from danlu.png import png_bytes

_USUAL = 5.0
"""Standard deviations from black to white, where levels are not known."""
_SIDE, _SPEED, _SLOWEST = 320, 15.0, 4.0
_INK = (13, 148, 136)


def brightness(frame: Frame, images: Tensor) -> Tensor:
    """Images in the data's units from 0, black, to 1: by their levels, or else by how bright they usually are.

    Args:
        frame: of the data.
        images: ``[N, C, H, W]``.
    """
    levels = float(frame.levels)
    if levels > 1:
        return images / (levels - 1)
    return (images - frame.shift) / frame.scale / _USUAL + 0.5


def clouds_drawn(clouds: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Points as dots on white, all frames on one scale."""
    whole = np.concatenate([cloud[np.isfinite(cloud).all(1)] for cloud in clouds])
    low, high = np.quantile(whole, 0.002, 0), np.quantile(whole, 0.998, 0)
    middle, half = (low + high) / 2, max(float((high - low).max()) / 2 * 1.1, 1e-9)
    frames = []
    for cloud in clouds:
        frame = np.full((_SIDE, _SIDE, 3), 255, np.uint8)
        places = ((np.nan_to_num(cloud) - middle) / half / 2 + 0.5) * _SIDE
        inside = places[((places >= 1) & (places < _SIDE - 2)).all(1)].astype(int)
        for right, down in ((0, 0), (0, 1), (1, 0), (1, 1), (-1, 0), (0, -1)):
            frame[_SIDE - 1 - inside[:, 1] + down, inside[:, 0] + right] = _INK
        frames.append(frame)
    return frames


def write_way(file: Path, frames: Sequence[np.ndarray]) -> None:
    """Write frames as a GIF of two seconds or so, enlarged to where a dot can be seen.

    Args:
        file: which.
        frames: ``[H, W, 3]`` each, 0 to 255.
    """
    write_gif(file, [_enlarged(frame) for frame in frames], min(_SPEED, max(_SLOWEST, len(frames) / 2)))


def _enlarged(frame: np.ndarray) -> np.ndarray:
    times = max(1, _SIDE // max(frame.shape[:2]))
    return frame.repeat(times, 0).repeat(times, 1)


def text(picture: np.ndarray) -> str:
    """A picture, ``[H, W]`` or ``[H, W, 3]``, as a PNG in base64."""
    return base64.b64encode(png_bytes(picture)).decode()
