"""From a recipe's `data` to the rows that are trained on and those held out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from danlu.data.arrays import npy, tabular
from danlu.data.arrays.checks import settle, settle_like
from danlu.data.arrays.config import ArrayConfig
from danlu.data.arrays.facts import Facts
from danlu.data.arrays.images import LABEL, digits, folder, refuse_label
from danlu.data.arrays.npy import read_npy
from danlu.data.arrays.rows import Arrays
from danlu.data.arrays.tabular import read_table
from danlu.data.arrays.toys import TOYS, toy
from danlu.data.order import ordered
from danlu.errors import DataError, RecipeError, did_you_mean

DIGITS = "digits"
"""What scikit-learn's digits are called."""


def load_arrays(config: ArrayConfig, seed: int) -> tuple[Arrays, Arrays]:
    """The rows to train on, and those that are held out.

    Args:
        config: what to read.
        seed: of a toy's points, and of which rows are held out, where the recipe has none for them.

    Raises:
        DataError: when the data cannot be read as they are.
        RecipeError: when a name is not known, or the fields do not go together.
        UnsupportedError: where what reads them is not installed.
    """
    seed = seed if config.seed is None else config.seed
    whole = settle(_read(config.train, config, seed), config)
    if isinstance(config.held_out, str):
        return whole, settle_like(_read(config.held_out, config, seed + 1), whole)
    if len(whole) < 2:
        raise DataError("there is one row", where=whole.origin, do="Name data with more, some of which is held out.")
    num = min(max(round(config.held_out * len(whole)), 1), len(whole) - 1)
    order = ordered(len(whole), "held out", seed)
    return whole.part(order[num:]), whole.part(order[:num])


def load_like(name: str, config: ArrayConfig, seed: int, facts: Facts, whole: Sequence[bool]) -> Arrays:
    """Rows of another file as those are that a density knows.

    Args:
        name: the file, folder or toy.
        config: how it was read what the density was trained on.
        seed: of a toy's points.
        facts: what the rows are that it was trained on.
        whole: which of their columns, or channels, are dequantised.

    Raises:
        DataError: when these are none of the same kind.
        RecipeError, UnsupportedError: see `load_arrays`.
    """
    none = np.zeros((0, *facts.shape), np.float32)
    names = (facts.columns, facts.classes, facts.features)
    known = Arrays(none, None, facts.kind, facts.origin, *names, tuple(whole), facts.levels)
    return settle_like(_read(name, config, seed), known)


def _read(name: str, config: ArrayConfig, seed: int) -> Arrays:
    if name in TOYS:
        refuse_label(config)
        return toy(name, config.rows, seed, noise=config.noise, labelled=config.label == LABEL)
    if name == DIGITS:
        return digits(config)
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            return folder(path, config)
        if not path.is_file():
            raise _unknown(name)
        if path.stat().st_size == 0:
            raise DataError("the file is empty", where=path, do="Name a file that holds rows.")
        suffix = path.suffix.lower()
        if suffix in tabular.SUFFIXES:
            return read_table(path, config)
        if suffix in npy.SUFFIXES:
            return read_npy(path, config)
    except (OSError, ValueError) as fault:  # a ValueError is of a name with a zero byte in it
        what = f"the path cannot be read ({getattr(fault, 'strerror', None) or fault})"
        raise DataError(what, where=name, do="Check it and its rights.") from fault
    known = ", ".join(sorted(tabular.SUFFIXES | npy.SUFFIXES))
    raise DataError("the file is no table or array", where=path, do=f"Name one that ends in {known}, or a folder.")


def _unknown(name: str) -> DataError | RecipeError:
    if Path(name).suffix or "/" in name:
        do = "Check the path; it is relative to the current directory."
        return DataError("there is no such file or folder", where=name, do=do)
    what = f"no toy, file or folder is called '{name}'"
    return RecipeError(what, where="data.train", do=did_you_mean(name, [*TOYS, DIGITS]))
