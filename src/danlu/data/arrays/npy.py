"""Rows of npy and npz files: numbers, or images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from danlu.data.arrays.checks import classes_of, labels_of, look, refuse_unknown
from danlu.data.arrays.config import ArrayConfig
from danlu.data.arrays.rows import Arrays
from danlu.data.chunks import first_line
from danlu.errors import DataError, RecipeError

SUFFIXES = frozenset({".npy", ".npz"})
"""What such files end in."""
ROWS = "x"
"""What the rows are called in an npz file of several arrays."""
_CHANNELS = (1, 3, 4)
_BYTE = 256
_ZIP = b"PK"


def read_npy(path: Path, config: ArrayConfig) -> Arrays:
    """The rows of an array, those of an npy file left on disk.

    Args:
        path: of a file that ends in one of `SUFFIXES`.
        config: which columns, and what they are.

    Raises:
        DataError: when the file is not sound, or its numbers are not what a density can be of.
        RecipeError: when what is named is not there.
    """
    x, beside = _load(path)
    if x.dtype.kind not in "biuf":
        raise DataError(f"the array is of type {x.dtype}, not numbers", where=path, do="Save it as numbers.")
    if not x.size:
        raise DataError(f"the array has no numbers (its shape is {x.shape})", where=path, do="Save some rows.")
    if x.dtype.kind == "b":
        x = x.view(np.uint8)
    if x.ndim in (1, 2):
        return _table(x.reshape(len(x), -1), beside, path, config)
    if x.ndim in (3, 4):
        return _images(x, beside, path, config)
    what = f"the array has {x.ndim} axes"
    raise DataError(what, where=path, do="Rows of numbers have two; images three, or four with their channels.")


def _load(path: Path) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
    """The rows, and all else that is in the file by its name."""
    try:
        with path.open("rb") as file:
            if file.read(len(_ZIP)) != _ZIP:
                return np.load(path, mmap_mode="r", allow_pickle=False), {}
            file.seek(0)
            held = np.load(file, allow_pickle=False)
            arrays: dict[str, np.ndarray] = {name: held[name] for name in held.files}
    except Exception as fault:  # a damaged file is met with almost any exception
        if "pickle" in str(fault) or "Python objects" in str(fault):
            what = "the file holds Python objects, which are not read because they could run anything"
            raise DataError(what, where=path, do="Save plain numbers.") from fault
        what = f"the file is not sound {path.suffix[1:]} ({first_line(fault)})"
        raise DataError(what, where=path, do="Write it anew by numpy.") from fault
    if len(arrays) == 1:
        return next(iter(arrays.values())), {}
    if ROWS not in arrays:
        what = f"the file holds {', '.join(arrays) or 'nothing'}, and nothing called {ROWS}"
        raise DataError(what, where=path, do=f"Save the rows as {ROWS}.")
    return arrays.pop(ROWS), arrays


def _table(x: np.ndarray, beside: Mapping[str, np.ndarray], path: Path, config: ArrayConfig) -> Arrays:
    names = [f"f{j}" for j in range(x.shape[1])]
    labels = labels_of(config)
    own = [name for name in labels if name not in beside]
    refuse_unknown(config.columns or (), names, "columns")
    refuse_unknown(own, [*names, *beside], "label")
    told = {**beside, **{name: x[:, names.index(name)] for name in own}}
    taken = config.columns or [name for name in names if name not in own]
    if not taken:
        raise DataError("no column is left beside the label", where=path, do="Set data.columns.")
    if taken != names:
        x = x[:, [names.index(name) for name in taken]]
    seen = look(x, lambda j: f"column '{taken[j]}'", lambda row: f"{path} row {row}")
    condition, classes = _condition(told, config.label, len(x), str(path))
    features = () if classes else _feature_names(told, labels)
    return Arrays(x, condition, "table", str(path), tuple(taken), classes, features, seen=seen)


def _images(x: np.ndarray, beside: Mapping[str, np.ndarray], path: Path, config: ArrayConfig) -> Arrays:
    if config.columns is not None:
        raise RecipeError("images have no columns", where="data.columns", do="Leave it out.")
    if x.ndim == 3:
        x = x[:, None]
    elif x.shape[1] not in _CHANNELS[:2] and x.shape[3] in _CHANNELS:
        x = x.transpose(0, 3, 1, 2)
    labels = labels_of(config)
    refuse_unknown(labels, list(beside), "label")
    seen = look(x, lambda _: "an image", lambda row: f"{path} image {row}")
    condition, classes = _condition(beside, config.label, len(x), str(path))
    features = () if classes else _feature_names(beside, labels)
    levels = _BYTE if x.dtype == np.uint8 else None
    return Arrays(x, condition, "image", str(path), (), classes, features, levels=levels, seen=seen)


def _condition(
    told: Mapping[str, np.ndarray], label: str | list[str] | None, num: int, where: str
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """What rows are conditioned on, and the names of the classes where it is one."""
    if not label:
        return None, ()
    names = [label] if isinstance(label, str) else label
    columns = [np.asarray(told[name]) for name in names]
    for name, column in zip(names, columns, strict=True):
        if column.ndim not in (1, 2) or len(column) != num:
            what = f"'{name}' is of shape {column.shape}, and there are {num} rows"
            raise DataError(what, where=where, do="Save a label a row.")
        if column.dtype.kind not in "biufU":
            raise DataError(f"'{name}' is of type {column.dtype}, no label", where=where, do="Save numbers or texts.")
    if isinstance(label, str) and columns[0].ndim == 1 and columns[0].dtype.kind != "f":
        found, number = np.unique(columns[0], return_inverse=True)
        return classes_of(found.tolist(), number.astype(np.int64), f"'{label}'", where)
    for name, column in zip(names, columns, strict=True):
        if column.dtype.kind == "U":
            what = f"'{name}' is text, and labels in brackets are numbers"
            raise DataError(what, where=where, do="Name one text alone, or numbers.")
    wide = np.concatenate([column.reshape(num, -1).astype(np.float64) for column in columns], 1)
    look(wide, lambda j: f"number {j} of the label", lambda row: f"{where} row {row}")
    return wide.astype(np.float32), ()


def _feature_names(told: Mapping[str, np.ndarray], labels: Sequence[str]) -> tuple[str, ...]:
    """A name for each number that rows are conditioned on."""
    names: list[str] = []
    for label in labels:
        width = math.prod(told[label].shape[1:])
        names += [label] if told[label].ndim == 1 else [f"{label}{j}" for j in range(width)]
    return tuple(names)
