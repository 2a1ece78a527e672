"""Rows made by a density, as files: arrays, tables, pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from danlu.data.arrays import Facts
from danlu.density_files import is_density as lies_at
from danlu.density_files import read_density
from danlu.density_pixels import brightness
from danlu.errors import RecipeError, RunError, did_you_mean
from danlu.parts.framed import Framed
from danlu.png import grid, png_bytes

_ACROSS = 10
_CHANNELS = (1, 3)


def is_density(path: str | Path) -> bool:
    """Whether a density, or a run that has left one, lies in a directory."""
    return lies_at(Path(path))


def require_density(path: str | Path) -> None:
    """Say that no density is here, where no language model is either.

    Raises:
        CheckpointError: then.
    """
    if not any((Path(path) / place / "config.json").is_file() for place in (".", "final")):
        read_density(path)


def sample_to(
    out: str | Path,
    model: str | Path,
    *,
    num: int,
    seed: int = 0,
    of_class: str | None = None,
    condition: str | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """Make rows by a density, and write them in the data's units.

    Args:
        out: the file, whose name ends in .npy, .npz, .csv or .parquet; of images also .png, all in one picture, or a
            folder without such an ending, in which each becomes a PNG of its own.
        model: the density's directory, or its run's.
        num: how many rows.
        seed: which ones.
        of_class: the class of all of them; of a density that is given one, the classes by turns where this is None.
        condition: the numbers that all of them are given, with commas between them.
        overrides: fields of its method, as "method.steps=10".

    Returns:
        What was written.

    Raises:
        RecipeError: where an option does not fit.
        CheckpointError: where there is no density, or its files are damaged.
        RunError: where the file cannot be written.
    """
    place = Path(out)
    framed, facts = read_density(model, overrides)
    write = _writer(place, facts)
    given = conditions_of(facts, num, of_class, condition)
    told = None if given is None else torch.from_numpy(given)
    rows = framed.sample(num, told, seed=seed).numpy()
    try:
        write(place, Made(rows, given, framed, facts))
    except OSError as error:
        raise RunError(f"it cannot be written: {error.strerror or error}", where=place) from error
    return place


class Made:
    """Rows that a density made.

    Args:
        rows: them, in the data's units, ``[N, *shape]``.
        given: what each is conditioned on; None where that is nothing.
        framed: what made them.
        facts: what they are.
    """

    def __init__(self, rows: np.ndarray, given: np.ndarray | None, framed: Framed, facts: Facts) -> None:
        self.rows, self.given, self.framed, self.facts = rows, given, framed, facts

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """Each number of a row, and behind these what rows are conditioned on, by name."""
        flat = self.rows.reshape(len(self.rows), -1)
        named = self.facts.columns or tuple(f"f{i}" for i in range(flat.shape[1]))
        table = dict(zip(named, flat.T, strict=True))
        told: dict[str, np.ndarray] = {}
        if self.given is not None and self.facts.classes:
            told = {self.facts.label or "class": np.asarray(self.facts.classes)[self.given]}
        elif self.given is not None:
            told = dict(zip(self.facts.features, self.given.T, strict=True))
        return table | {f"{name} (given)" if name in table else name: column for name, column in told.items()}

    def brightness(self) -> np.ndarray:
        """Images from 0 to 1, ``[N, C, H, W]``."""
        return brightness(self.framed.frame, torch.from_numpy(self.rows)).numpy()


def conditions_of(facts: Facts, num: int, of_class: str | None, condition: str | None) -> np.ndarray | None:
    """What each of the rows is conditioned on: classes ``[num]`` (int64), or numbers ``[num, features]`` (float32).

    Raises:
        RecipeError: where something else is said than the density is given.
    """
    if of_class is not None and not facts.classes:
        raise RecipeError("this density is given no class", where="--class", do="Leave it out.")
    if condition is not None and not facts.features:
        raise RecipeError("this density is given no numbers", where="--condition", do="Leave it out.")
    if facts.features:
        return np.tile(_numbers(condition, facts), (num, 1))
    if not facts.classes:
        return None
    if of_class is None:
        return np.arange(num) % len(facts.classes)
    if of_class not in facts.classes:
        known = list(facts.classes)
        raise RecipeError(f"no class is called '{of_class}'", where="--class", do=did_you_mean(of_class, known))
    return np.full(num, facts.classes.index(of_class))


def _numbers(condition: str | None, facts: Facts) -> np.ndarray:
    names = ", ".join(facts.features)
    if condition is None:
        what = f"this density is given numbers ({names}), and none are told"
        raise RecipeError(what, where="--condition", do="Give them with commas between: --condition 0.5,2.")
    try:
        numbers = np.array([float(word) for word in condition.split(",")], np.float32)
    except ValueError:
        raise RecipeError(f"'{condition}' is not numbers with commas between", where="--condition") from None
    if len(numbers) != len(facts.features) or not np.isfinite(numbers).all():
        what = f"{len(numbers)} numbers are told, and this density is given {len(facts.features)}, finite ones"
        raise RecipeError(what, where="--condition", do=f"Give these: {names}.")
    return numbers


def _writer(out: Path, facts: Facts) -> Callable[[Path, Made], None]:
    """How a file of that name is written, seen to before rows are made.

    Raises:
        RecipeError: where none can be.
    """
    ending, images = out.suffix.lower(), len(facts.shape) == 3 and facts.shape[0] in _CHANNELS
    if ending not in _WRITERS and ending:
        raise RecipeError(f"rows are not written as {ending}", where=out, do=f"Name it {_named(images)}.")
    if ending in _TABLES and len(facts.shape) != 1:
        raise RecipeError("images are no rows of a table", where=out, do=f"Name it {_named(images)}.")
    if ending in _PICTURES and not images:
        raise RecipeError("these rows are no images", where=out, do=f"Name it {_named(images)}.")
    if not out.parent.is_dir():
        raise RecipeError("its folder does not exist", where=out, do="Make it, or name another.")
    if ending and out.is_dir():
        raise RecipeError("it is a folder", where=out, do="Name a file.")
    if not ending and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecipeError("there is something already", where=out, do="Name a folder that is empty or does not exist.")
    return _WRITERS[ending]


def _named(images: bool) -> str:
    return ".npy, .npz, .png, or as a folder" if images else ".npy, .npz, .csv or .parquet"


def _npy(out: Path, made: Made) -> None:
    with out.open("wb") as file:
        np.save(file, made.rows, allow_pickle=False)


def _npz(out: Path, made: Made) -> None:
    with out.open("wb") as file:
        if made.given is None:
            np.savez(file, x=made.rows)
        else:
            np.savez(file, x=made.rows, condition=made.given)


def _csv(out: Path, made: Made) -> None:
    import csv

    columns = made.columns
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(column.tolist() for column in columns.values()), strict=True))


def _parquet(out: Path, made: Made) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({name: pa.array(column) for name, column in made.columns.items()}), out)


def _picture(out: Path, made: Made) -> None:
    images = made.brightness()
    out.write_bytes(png_bytes(grid(images, min(_ACROSS, len(images)))))


def _folder(out: Path, made: Made) -> None:
    out.mkdir(exist_ok=True)
    images = made.brightness()
    digits = len(str(len(images) - 1))
    for number, image in enumerate(images):
        (out / f"{number:0{digits}}.png").write_bytes(png_bytes(grid(image[None], 1)))


_TABLES, _PICTURES = (".csv", ".parquet"), (".png", "")
_WRITERS: dict[str, Callable[[Path, Made], None]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".csv": _csv,
    ".parquet": _parquet,
    ".png": _picture,
    "": _folder,
}
