"""Every fault of data is one sentence that names where it is and what to do."""

from __future__ import annotations

import io
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from danlu.data.arrays import ArrayConfig, load_arrays
from danlu.errors import DanluError


def refusal(path: Path, **fields: Any) -> str:
    """What is said, the folder left out."""
    config = ArrayConfig(train=str(path), **fields)
    with pytest.raises(DanluError) as caught:
        load_arrays(config, 0)
    return str(caught.value).replace(f"{path.parent}/", "")


CSV = {
    "constant": (
        b"a,b\n1.5,2\n2.5,2\n",
        {},
        "t.csv: column 'b' is 2 in every row, and has no density. Leave it out by data.columns.",
    ),
    "nan": (b"a,b\n1.5,2.5\n\n2.5,NaN\n", {}, "t.csv:4: column 'b' has no value. Fill it in, or remove the row."),
    "missing": (b"a,b\n1.5,2.5\n2.5,\n", {}, "t.csv:3: column 'b' has no value. Fill it in, or remove the row."),
    "inf": (
        b"a,b\n1.5,2.5\n2.5,-inf\n",
        {},
        "t.csv:3: column 'b' has -inf, which is no number. Remove or repair the row.",
    ),
    "large": (b"a\n1.5\n1e300\n", {}, "t.csv:3: column 'a' has 1e+300, which is too large. Remove or repair the row."),
    "text": (
        b"a,b\n1.5,cat\n2.5,dog\n",
        {},
        "t.csv:2: column 'b' is text ('cat'). Condition rows on it by data.label=b, or name the columns to take in data.columns.",
    ),
    "one text": (
        b"a\n1.5\n2.5\nsome\n3.5\n",
        {},
        "t.csv:4: column 'a' has 'some', which is no number. Remove or repair the row.",
    ),
    "whole": (
        b"a,b\n1.5,2\n2.5,7\n",
        {},
        "t.csv: column 'b' holds whole numbers from 2 to 7, whose density has no bound. Set data.dequantize to true to add noise of "
        "width 1, or to false to take them as real numbers; or condition rows on them: data.label=b.",
    ),
    "levels": (
        b"a\n0\n7\n",
        {"dequantize": 7},
        "t.csv: column 'a' has 7, and 7 levels are 0 to 6. Set data.dequantize to as many levels as there are, or to true.",
    ),
    "label": (
        b"height,b\n1.5,2\n2.5,7\n",
        {"label": "hieght"},
        "data.label: no column is called 'hieght'. Did you mean 'height'?",
    ),
    "columns": (
        b"height,b\n1.5,2\n2.5,7\n",
        {"columns": ["hight"]},
        "data.columns: no column is called 'hight'. Did you mean 'height'?",
    ),
    "missing label": (
        b"a,b\n1.5,x\n2.5,\n",
        {"label": "b"},
        "t.csv:3: column 'b' has no value. Fill it in, or remove the row.",
    ),
    "one class": (
        b"a,b\n1.5,x\n2.5,x\n",
        {"label": "b"},
        "t.csv: all rows are of one class, 'x', which rows are to be conditioned on. Leave it out.",
    ),
    "constant number": (
        b"a,b\n1.5,2\n2.5,2\n",
        {"label": ["b"]},
        "t.csv: column 'b' is 2 in every row, which rows are to be conditioned on. Leave it out.",
    ),
    "only a label": (b"b\n1\n2\n", {"label": "b"}, "t.csv: no column is left beside the label. Set data.columns."),
    "twice": (b"a,a\n1.5,2\n2.5,3\n", {}, "t.csv: two columns are called 'a'. Name them apart."),
    "empty": (b"", {}, "t.csv: the file is empty. Name a file that holds rows."),
    "no rows": (b"a,b\n", {}, "t.csv: the file has no rows. Name a file that has some."),
    "one row": (
        b"a\n1.5\n",
        {"columns": ["a"]},
        "t.csv: column 'a' is 1.5 in every row, and has no density. Leave it out by data.columns.",
    ),
    "ragged": (
        b"a,b\n1.5,2.5\n\n2.5\n",
        {},
        "t.csv:4: the row has 1 values where the first has 2. Repair or remove it.",
    ),
    "dates": (
        b"a,b\n1.5,2020-01-01\n2.5,2020-01-02\n",
        {},
        "t.csv:2: column 'b' is of type date32[day], not numbers. Name the columns to take in data.columns.",
    ),
    "logit": (
        b"a\n1.5\n2.5\n",
        {"logit": 0.05},
        "data.logit: a logit transform is for values between known levels, and those of t.csv have none. Leave it out, or set "
        "data.dequantize to how many levels there are.",
    ),
}


@pytest.mark.parametrize("case", CSV)
def test_csv(tmp_path: Path, case: str) -> None:
    content, fields, expected = CSV[case]
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    assert refusal(path, **fields) == expected


def test_too_many_classes(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "".join(f"{i + 0.5},{i}\n" for i in range(1001)))
    said = refusal(path, label="b")
    assert said.startswith("t.csv: column 'b' has 1001 different values, too many to be classes.")
    assert load_arrays(ArrayConfig(train=str(path), label=["b"]), 0)[0].features == ("b",)


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"a": [1.5, float("nan"), 2.5]}), path)
    assert refusal(path) == "t.parquet row 1: column 'a' has nan, which is no number. Remove or repair the row."
    parquet.write_table(pa.table({"a": [[1.5], [2.5]]}), path)
    assert refusal(path).startswith("t.parquet row 0: column 'a' is of type list<")
    path.write_bytes(path.read_bytes()[:-20])
    assert refusal(path).startswith("t.parquet: the file is not sound Parquet (")


def saved(array: Any, **options: Any) -> bytes:
    to = io.BytesIO()
    np.save(to, array, **options)
    return to.getvalue()


NPY: dict[str, tuple[Callable[[], bytes], dict[str, Any], str]] = {
    "objects": (
        lambda: saved(np.array([{}, 1], object), allow_pickle=True),
        {},
        "t.npy: the file holds Python objects, which are not read because they could run anything. Save plain numbers.",
    ),
    "a pickle": (
        lambda: pickle.dumps([1.5, 2.5]),
        {},
        "t.npy: the file holds Python objects, which are not read because they could run anything. Save plain numbers.",
    ),
    "complex": (
        lambda: saved(np.ones((3, 2), complex)),
        {},
        "t.npy: the array is of type complex128, not numbers. Save it as numbers.",
    ),
    "no axis": (
        lambda: saved(np.float64(3)),
        {},
        "t.npy: the array has 0 axes. Rows of numbers have two; images three, or four with their channels.",
    ),
    "five axes": (
        lambda: saved(np.ones((2, 1, 1, 1, 1))),
        {},
        "t.npy: the array has 5 axes. Rows of numbers have two; images three, or four with their channels.",
    ),
    "no rows": (
        lambda: saved(np.ones((0, 3))),
        {},
        "t.npy: the array has no numbers (its shape is (0, 3)). Save some rows.",
    ),
    "nan": (
        lambda: saved(np.array([[1.5, 2], [2.5, np.nan]])),
        {},
        "t.npy row 1: column 'f1' has nan, which is no number. Remove or repair the row.",
    ),
    "constant": (
        lambda: saved(np.array([[1.5, 2], [2.5, 2]])),
        {},
        "t.npy: column 'f1' is 2 in every row, and has no density. Leave it out by data.columns.",
    ),
    "black images": (
        lambda: saved(np.zeros((3, 4, 4), np.uint8)),
        {},
        "t.npy: all values of all images are 0. Name other images.",
    ),
    "levels": (
        lambda: saved(np.arange(32).reshape(2, 4, 4).astype(np.uint8)),
        {"dequantize": 17},
        "t.npy: an image has 31, and 17 levels are 0 to 16. Set data.dequantize to as many levels as there are, or to true.",
    ),
    "whole images": (
        lambda: saved(np.arange(32.0).reshape(2, 4, 4)),
        {},
        "t.npy: images hold whole numbers from 0 to 31, whose density has no bound. Set data.dequantize to how many levels there are, or "
        "to false to take them as real numbers.",
    ),
    "label of images": (
        lambda: saved(np.zeros((3, 4, 4), np.uint8)),
        {"label": "y"},
        "data.label: no column is called 'y'.",
    ),
    "cut off": (
        lambda: saved(np.ones((30, 4)))[:-8],
        {},
        "t.npy: the file is not sound npy (mmap length is greater than file size)",
    ),
}


@pytest.mark.parametrize("case", NPY)
def test_npy(tmp_path: Path, case: str) -> None:
    made, fields, expected = NPY[case]
    path = tmp_path / "t.npy"
    path.write_bytes(made())
    assert refusal(path, **fields).startswith(expected)


def test_npz(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, a=np.ones(3), b=np.ones(3))
    assert refusal(path) == "t.npz: the file holds a, b, and nothing called x. Save the rows as x."
    np.savez(path, x=np.random.rand(3, 2), y=np.arange(4))
    assert refusal(path, label="y") == "t.npz: 'y' is of shape (4,), and there are 3 rows. Save a label a row."
    np.savez(path, x=np.random.rand(3, 2), y=np.array([{}, 1, 2], object))
    assert "holds Python objects" in refusal(path, label="y")


def picture(path: Path, size: tuple[int, int] = (4, 4), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 50).convert(mode).save(path)


def test_images(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    assert refusal(folder).startswith("pictures: the folder has no images. It is searched for .bmp, .gif")
    picture(folder / "a.png")
    picture(folder / "b.png", (4, 5))
    assert refusal(folder) == (
        "pictures/b.png: the image is 5 by 4, and pictures/a.png is 4 by 4. Set data.image_size, to which all are scaled."
    )
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:60])
    assert refusal(folder, image_size=4).startswith("pictures/b.png: the image cannot be read (")
    (folder / "b.png").write_bytes(b"nothing")
    assert refusal(folder).startswith("pictures/b.png: the image cannot be read (cannot identify image file")
    picture(folder / "b.png", mode="I;16")
    assert refusal(folder).startswith("pictures/b.png: the image has more than 8 bits a channel (mode I;16)")
    picture(folder / "b.png")
    assert refusal(folder, label="label") == (
        "pictures/a.png: the image lies in no folder of pictures, which would be its class. Move it into one, or leave data.label out."
    )
    assert refusal(folder, label="kind") == (
        "data.label: what these rows may be conditioned on is called 'label', not 'kind'. Set data.label=label."
    )
    assert refusal(folder, columns=["a"]) == "data.columns: these rows have no columns with names. Leave it out."


def test_names(tmp_path: Path) -> None:
    def said(train: str, **fields: Any) -> str:
        with pytest.raises(DanluError) as caught:
            load_arrays(ArrayConfig(train=train, **fields), 0)
        return str(caught.value)

    assert said("moon") == "data.train: no toy, file or folder is called 'moon'. Did you mean 'moons'?"
    assert said("two_moons") == "data.train: no toy, file or folder is called 'two_moons'. Did you mean 'moons'?"
    assert (
        said("x/y.csv")
        == "x/y.csv: there is no such file or folder. Check the path; it is relative to the current directory."
    )
    assert said("a\0b").startswith("data.train: no toy, file or folder is called")
    assert said("moons", label="arm").startswith("data.label: what these rows may be conditioned on is called 'label'")
    assert said("moons", held_out="digits").startswith(
        "digits: rows of shape (1, 8, 8) are held out of rows of shape (2,)"
    )
    (tmp_path / "a.txt").write_text("some")
    assert said(str(tmp_path / "a.txt")).startswith(
        f"{tmp_path}/a.txt: the file is no table or array. Name one that ends in .csv"
    )


def test_held_out_must_be_alike(tmp_path: Path) -> None:
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text("a,kind\n1.5,x\n2.5,y\n3.5,x\n")
    test.write_text("a,kind\n1.5,z\n2.5,x\n")
    assert refusal(train, held_out=str(test), label="kind") == (
        "test.csv: the class 'z' is held out and never trained on. Leave its rows out, or train on some of it."
    )
    test.write_text("b,kind\n1.5,x\n")
    assert refusal(train, held_out=str(test), label="kind").startswith(
        "test.csv: the columns b are not those of train.csv."
    )
    train.write_text("a\n0\n3\n")
    test.write_text("a\n4\n")
    assert refusal(train, held_out=str(test), dequantize=4).startswith(
        "test.csv: a row has 4, and 4 levels are 0 to 3."
    )


def sound_files() -> dict[str, bytes]:
    table = pa.table({"a": [1.5, 2.5, 3.25], "b": [0.5, 0.25, 0.75]})
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink)
    archive, png = io.BytesIO(), io.BytesIO()
    np.savez(archive, x=np.random.default_rng(0).normal(size=(4, 2)))
    Image.effect_noise((6, 6), 50).save(png, "png")
    return {
        "csv": b"a,b\n1.5,0.5\n2.5,0.25\n3.25,0.75\n",
        "parquet": bytes(sink.getvalue()),
        "npy": saved(np.random.default_rng(0).normal(size=(4, 2))),
        "npz": archive.getvalue(),
        "png": png.getvalue(),
    }


SOUND = sound_files()


def read(form: str, content: bytes) -> None:
    """Read it, or be told what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"file.{form}")
        path.write_bytes(content)
        try:
            train, held_out = load_arrays(ArrayConfig(train=folder if form == "png" else str(path)), 0)
        except DanluError:
            return
        assert np.isfinite(train.take(np.arange(len(train)))[0]).all()
        assert len(held_out)


@pytest.mark.parametrize("form", SOUND)
@given(content=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(form: str, content: bytes) -> None:
    read(form, content)


@pytest.mark.parametrize("form", SOUND)
@given(data=st.data())
def test_altered_files_are_read_or_refused(form: str, data: st.DataObject) -> None:
    content = bytearray(SOUND[form])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    read(
        form, bytes(content[: data.draw(st.integers(0, len(content)))]) if data.draw(st.booleans()) else bytes(content)
    )


@given(content=st.text(st.sampled_from("0123456789.,-+e\n\r\"' abnif"), max_size=80))
def test_any_table_of_text_is_read_or_refused(content: str) -> None:
    read("csv", content.encode())
