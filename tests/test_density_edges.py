"""What densities meet that is out of the ordinary: refused with a sentence, or done right."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

import danlu
from danlu.data.arrays import ArraySource, load_arrays
from danlu.density import Rows
from danlu.density_experiment import DrawnRows, assemble_density
from danlu.density_files import read_density
from danlu.engine.record import rows_of
from danlu.errors import CheckpointError, DanluError
from danlu.reading import read_recipe
from danlu.sampling import require_density, sample_to
from danlu.scoring import score

QUICK = ("run.steps=2", "run.epochs=null", "run.threads=1", "data.step_rows=16", "model.hidden=[8]")


def table(folder: Path, name: str, **columns: object) -> Path:
    file = folder / f"{name}.csv"
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return file


def columns(num: int = 60) -> dict[str, np.ndarray]:
    chance = np.random.default_rng(0)
    return {"a": chance.normal(size=num), "b": chance.normal(size=num)}


def trained(folder: Path, method: str, *overrides: str) -> Path:
    return danlu.train(method, *QUICK, *overrides, f"run.out={folder / 'run'}").path


def refusal(method: str, *overrides: str) -> str:
    with pytest.raises(DanluError) as caught:
        assemble_density(read_recipe(method, [*QUICK, *overrides]))
    return str(caught.value)


def test_a_column_that_float32_cannot_tell_apart_is_refused(tmp_path: Path) -> None:
    later = 1.6e9 + columns()["a"]
    said = refusal("nice", f"data.train={table(tmp_path, 't', t=later, b=columns()['b'])}")
    assert "column 't' lies between" in said
    assert "float32 has steps of 128" in said
    assert "Subtract an offset" in said


def test_semicolons_between_columns_are_told(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a;b\n1,5;2,5\n", encoding="utf-8")
    assert "columns stand between semicolons" in refusal("nice", f"data.train={tmp_path / 't.csv'}")


def test_a_column_named_twice_or_none_is_refused(tmp_path: Path) -> None:
    file = table(tmp_path, "t", **columns())
    assert "'a' is named twice" in refusal("nice", f"data.train={file}", "data.columns=[a,a]")
    assert "data.columns" in refusal("nice", f"data.train={file}", "data.columns=[]")


def test_held_out_rows_of_other_units_or_order_are_refused(tmp_path: Path) -> None:
    whole = {name: (10 * column).round().astype(int) for name, column in columns().items()}
    file, held = table(tmp_path, "t", **whole), table(tmp_path, "h", **columns())
    said = refusal("nice", f"data.train={file}", f"data.held_out={held}", "data.dequantize=true")
    assert "column 'a' holds whole numbers where it is trained, and others here" in said
    turned = table(tmp_path, "o", **dict(reversed(columns().items())))
    plain = table(tmp_path, "p", **columns())
    assert "are not in the order of" in refusal("nice", f"data.train={plain}", f"data.held_out={turned}")


def test_one_row_that_is_held_out_is_enough_for_a_report(tmp_path: Path) -> None:
    run = trained(tmp_path, "nice", f"data.train={table(tmp_path, 't', **columns())}", "data.held_out=0.001")
    assert (run / "report.html").exists()


def test_rows_that_come_twice_in_an_update_have_noise_of_their_own() -> None:
    experiment = assemble_density(read_recipe("flow_matching", [*QUICK, "data.train=moons", "data.rows=12"]))
    (rows,) = experiment.source().draw()
    keyed = Rows.join([rows]).keyed(3)
    again = {}
    for sample, key in zip(keyed.sample.tolist(), keyed.keys.tolist(), strict=True):
        again.setdefault(sample, []).append(key)
    assert max(map(len, again.values())) == 2
    assert len(set(keyed.keys.tolist())) == len(keyed)
    assert rows.visit is not None


def test_what_is_random_does_not_depend_on_how_an_update_is_cut() -> None:
    arrays = assemble_density(read_recipe("nice", [*QUICK, "data.train=moons", "data.rows=12"])).train
    whole, cut = (DrawnRows(ArraySource(len(arrays), 25, block=block), arrays) for block in (None, 4))
    for _ in range(3):
        (one,), some = whole.draw(), cut.draw()
        assert torch.equal(one.keyed(7).keys, Rows.join(some).keyed(7).keys)
        assert torch.equal(one.keyed(7).keys, torch.cat([group.keyed(7).keys for group in some]))


@pytest.mark.parametrize(
    ("method", "override", "said"),
    [
        ("nice", "method.prior=normal", "method.prior is part of what was learned. No field of nice can be another."),
        ("nice", "method.steps=4", "method.steps is part of what was learned"),
        ("diffusion", "method.schedule=cosine", "These can be others: method.bound_steps, method.guidance"),
        ("flow_matching", "method.path=trigonometric", "method.path is part of what was learned"),
        ("flow_matching", "run.seed=3", "only fields of the method can be said again"),
    ],
)
def test_what_was_learned_cannot_be_said_again(tmp_path: Path, method: str, override: str, said: str) -> None:
    run = trained(tmp_path, method, "data.train=moons", "data.rows=60")
    with pytest.raises(DanluError, match=r".") as caught:
        read_density(run, [override])
    assert said in str(caught.value)


def test_how_rows_are_made_can_be_said_again(tmp_path: Path) -> None:
    run = trained(tmp_path, "flow_matching", "data.train=moons", "data.rows=60")
    framed, _ = read_density(run, ["method.solver=euler", "method.steps=3"])
    framed.sample(2)
    assert framed.density.evaluations == 3


def test_nothing_that_lies_somewhere_is_told_as_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no density here"):
        require_density(tmp_path / "nope")
    (tmp_path / "config.json").write_text("{}")
    require_density(tmp_path)


def test_a_density_is_not_taken_for_a_language_model(tmp_path: Path) -> None:
    run = trained(tmp_path, "nice", "data.train=moons", "data.rows=60")
    with pytest.raises(CheckpointError, match="a density is here and no language model.*danlu generate"):
        danlu.load(str(run / "final"))


def test_rows_of_a_class_are_written_under_its_own_name(tmp_path: Path) -> None:
    kinds = np.array(["cat", "dog"])[np.arange(60) % 2]
    given = {"class": columns()["a"], "b": columns()["b"], "k": kinds}
    run = trained(tmp_path, "nice", f"data.train={table(tmp_path, 't', **given)}", "data.label=k")
    with sample_to(tmp_path / "made.csv", run, num=4).open() as opened:
        made = list(csv.DictReader(opened))
    assert list(made[0]) == ["class", "b", "k"]
    assert [row["k"] for row in made] == ["cat", "dog", "cat", "dog"]
    assert all(float(row["class"]) for row in made)
    assert danlu.load_density(run).sample(2, "dog").shape == (2, 2)


def test_a_field_given_vectors_draws_no_map_of_the_plane(tmp_path: Path) -> None:
    chance = np.random.default_rng(1)
    given = {**columns(), "u": chance.normal(size=60), "v": chance.normal(size=60)}
    run = trained(tmp_path, "flow_matching", f"data.train={table(tmp_path, 't', **given)}", "data.label=[u,v]")
    shown = [event for event in rows_of(run / "events.jsonl") if event["kind"] == "density"]
    assert shown
    assert all("cloud" in event and "map" not in event for event in shown)


@pytest.mark.parametrize("label", ["", "data.label=label"])
def test_rows_of_a_file_are_scored_as_python_scores_them(tmp_path: Path, label: str) -> None:
    run = trained(tmp_path, "realnvp", "data.train=digits", "method.scales=1", *([label] if label else []))
    found = score(run, ["data.eval=digits"])["likelihood"]
    assert found.counts == {"samples": 1797}
    each = [record["log_likelihood"] for record in found.records]
    assert found.metrics["log_likelihood"] == pytest.approx(np.mean(each))
    assert found.metrics["bits_per_dim"] == pytest.approx(-np.mean(each) / 64 / np.log(2))
    arrays, _ = load_arrays(read_recipe("realnvp", ["data.train=digits", *([label] if label else [])]).data, 0)
    assert len(arrays) < 1797


def test_scored_rows_are_those_of_the_file(tmp_path: Path) -> None:
    given = columns()
    run = trained(tmp_path, "nice", f"data.train={table(tmp_path, 't', **given)}")
    other = table(tmp_path, "o", a=given["a"][:7], b=given["b"][:7])
    found = score(run, [f"data.eval={other}"])["likelihood"]
    rows = np.stack([given["a"][:7], given["b"][:7]], 1)
    wanted = danlu.load_density(run).log_prob(rows)
    assert [record["log_likelihood"] for record in found.records] == pytest.approx(wanted.tolist(), abs=1e-4)


def test_what_cannot_be_scored_is_told(tmp_path: Path) -> None:
    run = trained(tmp_path, "nice", f"data.train={table(tmp_path, 't', **columns())}")
    others = table(tmp_path, "o", a=columns()["a"], c=columns()["b"])
    for overrides, said in (
        ([], "one file is to be named whose rows are scored"),
        ([f"data.eval={others}"], "the columns a, c are not those of"),
        ([f"data.eval={others}", "method.steps=3"], "method.steps is part of what was learned"),
    ):
        with pytest.raises(DanluError) as caught:
            score(run, overrides)
        assert said in str(caught.value)
