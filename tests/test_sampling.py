from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import danlu
from commands import Say
from danlu.data.arrays import Facts
from danlu.errors import DanluError, RecipeError
from danlu.sampling import conditions_of, sample_to

SMALL = ("run.steps=4", "run.threads=1", "run.eval_every=4", "data.step_rows=64")


@pytest.fixture(scope="module")
def moons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two half moons, each a class."""
    out = tmp_path_factory.mktemp("moons") / "run"
    return danlu.train("nice", *SMALL, "data.rows=600", "data.label=label", f"run.out={out}").path


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on images."""
    out = tmp_path_factory.mktemp("digits") / "run"
    return danlu.train("flow_matching", *SMALL, "data.train=digits", "method.solver=euler", f"run.out={out}").path


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on columns that are given one of their number."""
    folder = tmp_path_factory.mktemp("table")
    rows = np.random.default_rng(0).standard_normal((300, 3))
    np.savetxt(folder / "t.csv", rows, delimiter=",", header="u,v,w", comments="")
    data = (f"data.train={folder / 't.csv'}", "data.label=w")
    return danlu.train("maf", *SMALL, *data, f"run.out={folder / 'run'}").path


def test_arrays_are_what_the_density_samples(moons: Path, tmp_path: Path) -> None:
    density = danlu.load_density(moons)
    want = density.sample(10, np.arange(10) % 2, seed=3).numpy()
    assert sample_to(tmp_path / "a.npy", moons / "final", num=10, seed=3) == tmp_path / "a.npy"
    assert np.array_equal(np.load(tmp_path / "a.npy", allow_pickle=False), want)
    sample_to(tmp_path / "a.npz", moons, num=10, seed=3)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as held:
        assert np.array_equal(held["x"], want)
        assert held["condition"].tolist() == [0, 1] * 5
    sample_to(tmp_path / "b.npy", moons, num=10, seed=4)
    assert not np.array_equal(np.load(tmp_path / "b.npy"), want)


def test_tables_have_names_and_what_rows_are_given(moons: Path, table: Path, tmp_path: Path) -> None:
    sample_to(tmp_path / "a.csv", moons, num=4, of_class="lower")
    with (tmp_path / "a.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["x", "y", "class"]
    assert [row[2] for row in rows] == ["lower"] * 4
    want = danlu.load_density(moons).sample(4, 1, seed=0).numpy()
    np.testing.assert_allclose([[float(v) for v in row[:2]] for row in rows], want)
    sample_to(tmp_path / "b.parquet", table, num=3, condition="0.5")
    told = pq.read_table(tmp_path / "b.parquet").to_pydict()
    assert list(told) == ["u", "v", "w"]
    assert told["w"] == [0.5] * 3
    want = danlu.load_density(table).sample(3, np.array([[0.5]]), seed=0).numpy()
    np.testing.assert_array_equal(np.stack([told["u"], told["v"]], 1), want)


def test_images_are_one_picture_or_one_each(digits: Path, tmp_path: Path) -> None:
    images = danlu.load_density(digits).sample(12, seed=0).numpy()
    sample_to(tmp_path / "all.png", digits, num=12)
    with Image.open(tmp_path / "all.png") as picture:
        assert picture.size == (10 * 9 - 1, 2 * 9 - 1)
    sample_to(tmp_path / "each", digits, num=12)
    names = sorted(path.name for path in (tmp_path / "each").iterdir())
    assert names == [f"{i:02}.png" for i in range(12)]
    with Image.open(tmp_path / "each" / "07.png") as picture:
        np.testing.assert_allclose(np.asarray(picture), images[7, 0] / 16 * 255, atol=0.51)


def test_fields_of_the_method_may_be_said_again(digits: Path, tmp_path: Path) -> None:
    one, two = (tmp_path / name for name in ("one.npy", "two.npy"))
    sample_to(one, digits, num=2, overrides=["method.steps=1"])
    sample_to(two, digits, num=2)
    assert not np.array_equal(np.load(one), np.load(two))
    with pytest.raises(RecipeError, match="only fields of the method"):
        sample_to(one, digits, num=2, overrides=["data.train=moons"])
    with pytest.raises(RecipeError, match=r"method\.step.* Did you mean"):
        sample_to(one, digits, num=2, overrides=["method.stepz=1"])


@pytest.mark.parametrize(
    ("run", "out", "more", "words"),
    [
        ("moons", "a.png", {}, "these rows are no images"),
        ("moons", "a", {}, "these rows are no images"),
        ("moons", "a.txt", {}, r"not written as \.txt.*\.parquet"),
        ("moons", "no/a.npy", {}, "its folder does not exist"),
        ("moons", "a.npy", {"of_class": "uper"}, "no class is called 'uper'.*upper"),
        ("moons", "a.npy", {"condition": "1"}, "given no numbers"),
        ("digits", "a.csv", {}, "images are no rows of a table"),
        ("digits", "full", {}, "there is something already"),
        ("digits", "a.npy", {"of_class": "1"}, "given no class"),
        ("table", "a.npy", {}, r"numbers \(w\), and none are told"),
        ("table", "a.npy", {"condition": "x"}, "'x' is not numbers"),
        ("table", "a.npy", {"condition": "1,2"}, "2 numbers are told.*given 1"),
        ("table", "a.npy", {"condition": "nan"}, "finite"),
    ],
)
def test_what_does_not_fit_is_a_sentence_before_anything_is_written(
    run: str, out: str, more: dict[str, str], words: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DanluError, match=words):
        sample_to(tmp_path / out, request.getfixturevalue(run), num=2, **more)  # type: ignore[arg-type]
    assert sorted(tmp_path.rglob("*")) == before


def test_classes_come_by_turns_where_none_is_told() -> None:
    facts = Facts((2,), "toy", "", ("x", "y"), ("a", "b", "c"), (), None)
    told = conditions_of(facts, 5, None, None)
    assert told is not None
    assert told.tolist() == [0, 1, 2, 0, 1]


def test_on_the_command_line(say: Say, moons: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.npy"
    answer = say("generate", moons / "final", "--num", 7, "--out", out, "--class", "upper", "--seed", 2)
    assert (answer.status, answer.out.strip(), answer.err) == (0, str(out), "")
    want = danlu.load_density(moons).sample(7, 0, seed=2).numpy()
    assert np.array_equal(np.load(out), want)


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["-p", "a"], 1, r"a density continues no text.*--num N --out FILE"),
        (["--tokens", "5", "--out", "a.npy"], 1, "--tokens: a density continues no text"),
        ([], 2, "say where rows go"),
    ],
)
def test_options_of_texts_are_refused(say: Say, moons: Path, options: list[str], status: int, words: str) -> None:
    import re

    answer = say("generate", moons, *options)
    assert answer.status == status
    assert re.search(words, " ".join(answer.err.split()))
