"""The `data` noun of a recipe that learns a distribution of rows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from danlu.config import Config

Fraction = Annotated[float, Field(gt=0, lt=1)]
Side = Annotated[int, Field(ge=1)]


def _each_once(names: list[str]) -> list[str]:
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise ValueError(f"'{twice}' is named twice")
    return names


class ArrayConfig(Config):
    """What to learn the distribution of, and how much of it makes one update."""

    train: str = "moons"
    """A toy (moons, rings, spirals, checkerboard, eight_gaussians); `digits`; a CSV, TSV, Parquet, npy or npz file; or
    a folder of images. An array of three or four axes is images: one after another, channels before rows."""
    held_out: str | Fraction = 0.1
    """What to measure on and never train on: another such file or folder, or a share of the rows of `train`."""
    rows: int = Field(default=10_000, ge=2)
    """Of a toy: how many points there are, those held out among them."""
    noise: float | None = Field(default=None, ge=0)
    """Of a toy: the standard deviation of what is added to each coordinate (of eight_gaussians, of each Gaussian); null
    is the toy's own."""
    seed: int | None = None
    """Of a toy's points, and of which rows are held out; null is the run's."""
    columns: Annotated[list[str], Field(min_length=1), AfterValidator(_each_once)] | None = None
    """Of a table: the columns to take; null takes all but the label's. A table without names has f0, f1 and so on."""
    label: str | list[str] | None = None
    """What rows are conditioned on; null: on nothing. Of a table a column of texts or whole numbers, which are classes,
    or one or several columns of numbers; of npz another of its arrays; of toys, digits and a folder whose images lie in
    a folder a class: `label`."""
    image_size: Side | tuple[Side, Side] | None = None
    """Of a folder: the height and width (or both) that images are scaled to, the middle of each being kept; null takes
    them as they are, which must be of one size."""
    channels: Literal[1, 3] | None = None
    """Of a folder: 1 takes images as grey, 3 as colours; null is grey where all of them are."""
    dequantize: Literal["auto"] | bool | Annotated[int, Field(ge=2)] = "auto"
    """Whether whole numbers get uniform noise of width 1, without which a density of them has no bound: `auto` does so
    for images, and asks about columns of whole numbers; a number says how many levels there are, from 0; false takes
    them as real numbers."""
    logit: float | None = Field(default=None, gt=0, lt=0.5)
    """Alpha, where values of known levels, scaled to x in (0, 1), become logit(alpha + (1 - 2 alpha) x); null leaves
    them."""
    standardize: bool = True
    """Scale columns, or channels of images, to mean 0 and standard deviation 1 over the training rows."""
    step_rows: int = Field(default=256, ge=1)
    """Rows that make one update."""
