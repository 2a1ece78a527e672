"""Images: scikit-learn's digits, or a folder of files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from danlu.data.arrays.checks import classes_of, look
from danlu.data.arrays.config import ArrayConfig
from danlu.data.arrays.rows import Arrays
from danlu.data.chunks import first_line
from danlu.errors import DataError, RecipeError, UnsupportedError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
"""What is read of a folder."""
LABEL = "label"
"""What the classes of images and toys are called."""
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_GREY = ("1", "L", "LA")
_DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_BYTE, _DIGIT_LEVELS = 256, 17


def digits(config: ArrayConfig) -> Arrays:
    """Handwritten digits of scikit-learn, 1797 of 8 by 8 pixels in 17 levels.

    Raises:
        UnsupportedError: where scikit-learn is not installed.
        RecipeError: when they are to be conditioned on something else than their class.

    References:
        Alpaydin and Kaynak, 1998, https://doi.org/10.24432/C50P49
    """
    refuse_label(config)
    _need("sklearn", "the digits", "scikit-learn")
    from sklearn.datasets import load_digits

    held = load_digits()
    x = held.images.astype(np.uint8)[:, None]
    condition, classes = (
        (None, ()) if config.label is None else (held.target.astype(np.int64), _names(held.target_names))
    )
    seen = look(x, lambda _: "a digit", lambda row: f"digit {row}")
    return Arrays(x, condition, "image", "digits", (), classes, levels=_DIGIT_LEVELS, seen=seen)


def folder(path: Path, config: ArrayConfig) -> Arrays:
    """The images of a folder, at any depth, in the order of their names, as bytes ``[N, C, H, W]``.

    Args:
        path: of the folder; where images are conditioned on their class, it has a folder a class.
        config: of which size and colours they are to be.

    Raises:
        UnsupportedError: where Pillow is not installed.
        DataError: when there are none, they are not of one size, one is not sound, or a class has none.
        RecipeError: when they are to be conditioned on something else than their class.
    """
    refuse_label(config)
    _need("PIL", "images", "pillow")
    files = _files(path)
    if not files:
        raise DataError("the folder has no images", where=path, do=f"It is searched for {', '.join(sorted(SUFFIXES))}.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about what files say of themselves
        x = _decoded(files, config)
    seen = look(x, lambda _: "an image", lambda row: str(files[row]))
    condition, classes = (None, ()) if config.label is None else _labels(path, files)
    return Arrays(x, condition, "image", str(path), (), classes, levels=_BYTE, seen=seen)


def refuse_label(config: ArrayConfig) -> None:
    """Refuse to condition on anything but classes, where rows have no other label, and to take columns.

    Raises:
        RecipeError: saying what it is called.
    """
    if config.label not in (None, LABEL):
        what = f"what these rows may be conditioned on is called '{LABEL}', not {config.label!r}"
        raise RecipeError(what, where="data.label", do=f"Set data.label={LABEL}.")
    if config.columns is not None:
        raise RecipeError("these rows have no columns with names", where="data.columns", do="Leave it out.")


def _need(module: str, what: str, package: str) -> None:
    if find_spec(module) is None:
        raise UnsupportedError(f"{package} is not installed, which reads {what}", do=f"Run 'pip install {package}'.")


def _names(names: Sequence[object]) -> tuple[str, ...]:
    return tuple(str(name) for name in names)


def _files(path: Path) -> list[Path]:
    """All images below a folder, hidden ones left out."""
    found = []
    for parent, folders, names in os.walk(path, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        images = (name for name in names if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES)
        found += [Path(parent, name) for name in images]
    return sorted(found)


def _unreadable(fault: OSError) -> None:
    raise DataError(f"the folder cannot be read ({fault.strerror})", where=fault.filename, do="Check its rights.")


def _labels(path: Path, files: Sequence[Path]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The class of each image: the first folder on the way to it."""
    names = []
    for file in files:
        inner = file.relative_to(path).parts
        if len(inner) == 1:
            what = f"the image lies in no folder of {path}, which would be its class"
            raise DataError(what, where=file, do="Move it into one, or leave data.label out.")
        names.append(inner[0])
    found, number = np.unique(np.array(names), return_inverse=True)
    return classes_of(found.tolist(), number.astype(np.int64), "the folder of images", str(path))


def _decoded(files: Sequence[Path], config: ArrayConfig) -> UInt8[np.ndarray, "N C H W"]:
    """All images, of one size and kind, which their headers tell before any is decoded."""
    size = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
    first, channels = size, config.channels or 1
    for file in files:
        with _opened(file) as image:
            if image.mode in _DEEP:
                what = f"the image has more than 8 bits a channel (mode {image.mode})"
                raise DataError(what, where=file, do="Save it with 8, or save all images as one npy file.")
            if config.channels is None and image.mode not in _GREY:
                channels = 3
            here = (image.height, image.width)
            first = first or here
            if size is None and here != first:
                what = f"the image is {_by(here)}, and {files[0]} is {_by(first)}"
                raise DataError(what, where=file, do="Set data.image_size, to which all are scaled.")
    height, width = first or (1, 1)
    x = np.empty((len(files), channels, height, width), np.uint8)
    for i, file in enumerate(files):
        x[i] = _pixels(file, (height, width), channels)
    return x


def _pixels(file: Path, size: tuple[int, int], channels: int) -> np.ndarray:
    """One image, ``[C, H, W]``."""
    from PIL import ImageOps

    with _opened(file) as image:
        try:
            made = image.convert("L" if channels == 1 else "RGB")
            if (made.height, made.width) != size:
                made = ImageOps.fit(made, (size[1], size[0]))
        except Exception as fault:  # Pillow meets a damaged file with almost any exception
            raise _unsound(file, fault) from fault
        pixels = np.asarray(made)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _opened(file: Path) -> Image:
    """A file as an image whose header alone has been read."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(file, formats=_FORMATS)
    except Exception as fault:  # as above
        raise _unsound(file, fault) from fault


def _unsound(file: Path, fault: Exception) -> DataError:
    return DataError(f"the image cannot be read ({first_line(fault)})", where=file, do="Remove or repair it.")


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} by {size[1]}"
