"""From `data` to rows: what every form of file becomes, and how they are split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import csv, parquet
from pydantic import ValidationError

from danlu.data.arrays import ArrayConfig, Arrays, load_arrays

TABLE = pa.table(
    {
        "height": [1.5, 1.75, 1.25, 2.0],
        "weight": [50.5, 70.25, 40.5, 90.0],
        "kind": ["b", "a", "b", "c"],
        "group": [3, 1, 1, 10],
        "dose": [0.5, 1.5, 2.5, 3.5],
    }
)


def every(config: ArrayConfig) -> dict[str, np.ndarray]:
    """All rows of both parts, in the order of their first number, with what they are conditioned on."""
    parts = load_arrays(config, 0)
    taken = [part.take(np.arange(len(part))) for part in parts]
    x = np.concatenate([x for x, _ in taken])
    order = np.argsort(x.reshape(len(x), -1)[:, 0], kind="stable")
    conditions = [condition for _, condition in taken if condition is not None]
    return {"x": x[order], **({"condition": np.concatenate(conditions)[order]} if conditions else {})}


def saved(folder: Path, form: str) -> str:
    path = folder / f"table.{form}"
    if form == "parquet":
        parquet.write_table(TABLE, path)
    else:
        csv.write_csv(TABLE, path, csv.WriteOptions(delimiter="\t" if form == "tsv" else ","))
    return str(path)


@pytest.mark.parametrize("form", ["csv", "tsv", "parquet"])
def test_a_table_gives_its_columns(tmp_path: Path, form: str) -> None:
    config = ArrayConfig(train=saved(tmp_path, form), columns=["height", "weight"], held_out=0.25)
    train, held_out = load_arrays(config, 0)
    assert (len(train), len(held_out)) == (3, 1)
    assert train.columns == ("height", "weight")
    assert train.kind == "table"
    expected = [[1.25, 40.5], [1.5, 50.5], [1.75, 70.25], [2.0, 90.0]]
    assert every(config)["x"].tolist() == expected


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("label", "classes", "expected"),
    [
        ("kind", ("a", "b", "c"), [1, 1, 0, 2]),
        ("group", ("1", "3", "10"), [0, 1, 0, 2]),
        ("dose", (), [[2.5], [0.5], [1.5], [3.5]]),
        (["group", "dose"], (), [[1, 2.5], [3, 0.5], [1, 1.5], [10, 3.5]]),
    ],
)
def test_a_label_is_classes_or_numbers(
    tmp_path: Path, form: str, label: str | list[str], classes: tuple[str, ...], expected: list[object]
) -> None:
    config = ArrayConfig(train=saved(tmp_path, form), columns=["height", "weight"], label=label)
    train, _ = load_arrays(config, 0)
    assert train.classes == classes
    assert train.features == (() if classes else tuple([label] if isinstance(label, str) else label))
    condition = every(config)["condition"]
    assert condition.tolist() == expected
    assert condition.dtype == (np.int64 if classes else np.float32)


def test_all_but_the_label_is_taken_by_default(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    parquet.write_table(
        TABLE.select(["height", "kind", "weight"]).append_column("__index_level_0__", [[0, 1, 2, 3]]), path
    )
    assert load_arrays(ArrayConfig(train=str(path), label="kind"), 0)[0].columns == ("height", "weight")


def test_a_table_without_names_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "bare.csv"
    path.write_text("1.5,2\n2.5,3\n\n3.5,5\n")
    config = ArrayConfig(train=str(path), dequantize=True)
    assert load_arrays(config, 0)[0].columns == ("f0", "f1")
    assert every(config)["x"].tolist() == [[1.5, 2], [2.5, 3], [3.5, 5]]
    assert load_arrays(config, 0)[0].whole == (False, True)


def test_numbers_that_become_texts_far_below_are_still_numbers_elsewhere(tmp_path: Path) -> None:
    """The reader guesses kinds from the first megabyte."""
    path = tmp_path / "long.csv"
    lines = [f"{i + 0.5},{i % 7},{i % 3}\n" for i in range(150_000)]
    path.write_text("a,b,kind\n" + "".join(lines) + "0.25,1,other\n")
    config = ArrayConfig(train=str(path), label="kind", columns=["a"])
    assert load_arrays(config, 0)[0].classes == ("0", "1", "2", "other")
    assert every(config)["x"][0, 0] == 0.25


def test_npy_is_left_on_disk(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(20, 3))
    np.save(tmp_path / "x.npy", x)
    config = ArrayConfig(train=str(tmp_path / "x.npy"))
    train, held_out = load_arrays(config, 0)
    assert isinstance(train.x, np.memmap)
    assert (len(train), len(held_out)) == (18, 2)
    assert train.take(np.arange(5))[0].dtype == np.float32
    assert every(config)["x"] == pytest.approx(x[np.argsort(x[:, 0])], rel=1e-6)
    labelled = ArrayConfig(train=str(tmp_path / "x.npy"), label="f1")
    assert every(labelled)["x"] == pytest.approx(x[np.argsort(x[:, 0])][:, [0, 2]], rel=1e-6)


def test_npz_has_labels_beside_its_rows(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x, kind=np.array(list("abcabc")), dose=np.linspace(0, 1, 12).reshape(6, 2))
    train, _ = load_arrays(ArrayConfig(train=str(tmp_path / "x.npz"), label="kind"), 0)
    assert train.classes == ("a", "b", "c")
    train, _ = load_arrays(ArrayConfig(train=str(tmp_path / "x.npz"), label="dose"), 0)
    assert train.features == ("dose0", "dose1")
    np.savez(tmp_path / "one.npz", whatever=x)
    assert load_arrays(ArrayConfig(train=str(tmp_path / "one.npz")), 0)[0].shape == (2,)


@pytest.mark.parametrize("shape", [(5, 4, 6), (5, 1, 4, 6), (5, 3, 4, 6), (5, 4, 6, 3)])
def test_arrays_of_more_axes_are_images(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    np.save(tmp_path / "x.npy", x)
    train, _ = load_arrays(ArrayConfig(train=str(tmp_path / "x.npy")), 0)
    channels = 3 if 3 in shape else 1
    assert train.shape == (channels, 4, 6)
    assert (train.kind, train.levels, train.whole) == ("image", 256, (True,) * channels)
    expected = x.transpose(0, 3, 1, 2) if shape[3:] == (3,) else x.reshape(5, channels, 4, 6)
    assert np.array_equal(train.x, expected)


def test_digits() -> None:
    train, held_out = load_arrays(ArrayConfig(train="digits", label="label"), 0)
    assert len(train) + len(held_out) == 1797
    assert (train.shape, train.levels, train.x.dtype) == ((1, 8, 8), 17, np.uint8)
    assert train.classes == tuple("0123456789")
    assert load_arrays(ArrayConfig(train="digits", dequantize=False), 0)[0].whole == (False,)


def image(path: Path, size: tuple[int, int] = (5, 4), mode: str = "L", value: int = 0) -> np.ndarray:
    """A picture of random pixels, as ``[C, H, W]``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    pixels = np.random.default_rng(value).integers(0, 256, shape).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


def test_a_folder_of_images(tmp_path: Path) -> None:
    first = image(tmp_path / "cats" / "a.png", value=1)
    second = image(tmp_path / "dogs" / "deep" / "b.bmp", value=2)
    image(tmp_path / ".hidden" / "c.png")
    (tmp_path / "dogs" / "note.txt").write_text("no picture")
    config = ArrayConfig(train=str(tmp_path), label="label", held_out=0.5)
    found = every(config)
    assert found["x"].shape == (2, 1, 4, 5)
    by_class = {int(c): x for c, x in zip(found["condition"], found["x"], strict=True)}
    assert np.array_equal(by_class[0], first)
    assert np.array_equal(by_class[1], second)
    train, _ = load_arrays(config, 0)
    assert train.x.dtype == np.uint8
    assert (train.classes, train.levels) == (("cats", "dogs"), 256)


def test_images_of_two_kinds_or_sizes_are_brought_to_one(tmp_path: Path) -> None:
    grey = image(tmp_path / "a.png", value=1)
    colour = image(tmp_path / "b.png", mode="RGB", value=2)
    config = ArrayConfig(train=str(tmp_path), held_out=0.5)
    found = sorted(every(config)["x"].tolist())
    assert found == sorted([grey.repeat(3, 0).astype(float).tolist(), colour.astype(float).tolist()])
    assert load_arrays(ArrayConfig(train=str(tmp_path), channels=1), 0)[0].shape == (1, 4, 5)
    image(tmp_path / "c.png", size=(9, 9))
    assert load_arrays(ArrayConfig(train=str(tmp_path), image_size=6), 0)[0].shape == (3, 6, 6)
    assert load_arrays(ArrayConfig(train=str(tmp_path), image_size=(2, 3)), 0)[0].shape == (3, 2, 3)


def together(parts: tuple[Arrays, Arrays]) -> np.ndarray:
    return np.concatenate([part.take(np.arange(len(part)))[0] for part in parts])


def test_a_share_is_held_out_by_the_seed_and_nothing_is_lost() -> None:
    config = ArrayConfig(train="moons", rows=50, held_out=0.3, seed=7)
    train, held_out = load_arrays(config, 1)
    again, _ = load_arrays(config, 2)
    assert (len(train), len(held_out)) == (35, 15)
    assert np.array_equal(train.x, again.x)
    whole = together((train, held_out))
    assert len(np.unique(whole, axis=0)) == 50
    free = config.model_copy(update={"seed": None})
    assert not np.array_equal(load_arrays(free, 1)[0].x, load_arrays(free, 2)[0].x)
    tiny = load_arrays(ArrayConfig(train="moons", rows=2, held_out=0.01), 0)
    assert [len(part) for part in tiny] == [1, 1]


def test_another_file_is_held_out_with_the_same_classes(tmp_path: Path) -> None:
    """A class, and a column, may be constant there, and whole numbers need no word."""
    (tmp_path / "train.csv").write_text("a,kind\n1.5,x\n2.5,y\n3.5,z\n")
    (tmp_path / "test.csv").write_text("a,kind\n2,z\n2,z\n")
    config = ArrayConfig(train=str(tmp_path / "train.csv"), held_out=str(tmp_path / "test.csv"), label="kind")
    train, held_out = load_arrays(config, 0)
    assert (len(train), len(held_out)) == (3, 2)
    assert held_out.take(np.arange(2))[1].tolist() == [2, 2]
    assert held_out.classes == train.classes


def test_what_a_recipe_cannot_mean() -> None:
    for fields in (
        {"held_out": 1.5},
        {"rows": 1},
        {"logit": 0.6},
        {"channels": 2},
        {"step_rows": 0},
    ):
        with pytest.raises(ValidationError):
            ArrayConfig(**fields)
    assert ArrayConfig(dequantize=True).dequantize is True
    assert ArrayConfig(dequantize=256).dequantize == 256
