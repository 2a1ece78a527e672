"""Data sets by their name on the hub, through the `datasets` package where it is installed."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from danlu.data.chunks import first_line
from danlu.errors import DataError

_PREFIX = "hub:"
_NAME = re.compile(rf"({_PREFIX})?[\w.-]+/[\w.-]+(:[\w.-]+)?")


def is_hub_name(pattern: str) -> bool:
    """Whether what is no path may be a data set: ``hub:org/name``, or ``org/name`` where `datasets` is installed.

    Example:
        >>> is_hub_name("hub:openai/gsm8k:train"), is_hub_name("a/b/c")
        (True, False)
    """
    if not _NAME.fullmatch(pattern):
        return False
    return pattern.startswith(_PREFIX) or importlib.util.find_spec("datasets") is not None


def hub_files(pattern: str) -> list[Path]:
    """The Arrow files of one split of a data set, as `datasets` keeps them; "train" where none is named.

    Raises:
        DataError: when the package is absent or the data set cannot be had.
    """
    name, _, split = pattern.removeprefix(_PREFIX).partition(":")
    try:
        import datasets
    except ImportError:
        what = "a hub data set needs the `datasets` package"
        raise DataError(what, where=pattern, do="pip install datasets, or name files.") from None
    try:
        found = datasets.load_dataset(name, split=split or "train")
        files = [Path(file["filename"]) for file in found.cache_files]
    except Exception as fault:  # of the network, the hub, or a data set's own code
        what = f"this is no file, and no hub data set that can be had ({first_line(fault)})"
        raise DataError(what, where=pattern, do="Check the path or the name, or download it first.") from None
    if not files:
        raise DataError("`datasets` keeps no file of this data set", where=pattern, do="Save it with save_to_disk.")
    return files
