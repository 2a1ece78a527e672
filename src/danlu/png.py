"""Pictures as PNG, with nothing but the standard library: small enough to stand in a page, or in a line of JSON.

References:
    ISO/IEC 15948:2004, "Portable Network Graphics (PNG)", https://www.w3.org/TR/png/
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from jaxtyping import Float, UInt8

_GREY, _COLOR = 0, 2


def png_bytes(picture: UInt8[np.ndarray, "H W *C"]) -> bytes:
    """A picture as the content of a PNG file.

    Args:
        picture: ``[H, W]`` of greys, or ``[H, W, 3]`` of red, green and blue.

    Example:
        >>> png_bytes(np.zeros((2, 3), np.uint8))[1:4]
        b'PNG'
    """
    height, width = picture.shape[:2]
    rows = np.ascontiguousarray(picture, dtype=np.uint8).reshape(height, -1)
    unfiltered = np.concatenate([np.zeros((height, 1), np.uint8), rows], 1)
    head = struct.pack(">IIBBBBB", width, height, 8, _GREY if picture.ndim == 2 else _COLOR, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(unfiltered.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in chunks)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def grid(images: Float[np.ndarray, "N C H W"], columns: int, enlarged: int = 1) -> UInt8[np.ndarray, ...]:
    """Images side by side, a line of grey between them, as one picture.

    Args:
        images: from 0, black, to 1; of one channel, or of three. Of any other number the first is shown.
        columns: in a row; the last row may be short.
        enlarged: how many times, each way.

    Returns:
        ``[H, W]`` or ``[H, W, 3]``.

    Example:
        >>> grid(np.ones((3, 1, 4, 4)), 2).shape
        (9, 9)
    """
    shown = images if images.shape[1] == 3 else images[:, :1]
    levels = (np.nan_to_num(shown).clip(0, 1) * 255 + 0.5).astype(np.uint8)
    levels = levels.repeat(enlarged, 2).repeat(enlarged, 3)
    num, channels, height, width = levels.shape
    rows = -(-num // columns)
    whole = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), _LINE, np.uint8)
    for place, image in enumerate(levels):
        top, left = place // columns * (height + 1), place % columns * (width + 1)
        whole[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return whole if channels == 3 else whole[:, :, 0]


_LINE = 128
