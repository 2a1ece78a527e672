"""Runs of densities: gone on with to the bit, the same however they are cut up, exported, and refused by a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tests.broken_off import EndedError, Until
from tests.launching import Launch

import danlu
from danlu.engine.record import rows_of
from danlu.errors import CheckpointError, DanluError, DataError, RecipeError, UnsupportedError

SMALL = ("data.train=moons", "data.rows=600", "data.step_rows=64", "run.steps=8", "run.threads=1", "run.eval_every=4")
NOISY = ("seconds", "samples_per_second", "memory_bytes", "packs")
RECIPES = ("nice", "realnvp", "maf", "spline_coupling", "cnf", "flow_matching", "diffusion")
QUICK = {"cnf": ("method.solver=heun", "method.steps=4")}


def train(recipe: str, out: Path, *more: str) -> danlu.Run:
    return danlu.train(recipe, *SMALL, *QUICK.get(recipe, ()), *more, f"run.out={out}")


def rows(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in NOISY} for row in rows_of(run / "metrics.jsonl")]


def weights(run: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = load_file(run / "final" / "model.safetensors")
    return found


def assert_same(one: Path, other: Path, *, tolerance: float = 0.0) -> None:
    assert weights(one).keys() == weights(other).keys()
    for name, tensor in weights(one).items():
        np.testing.assert_allclose(tensor, weights(other)[name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_that_was_broken_off_goes_on_to_the_bit(recipe: str, tmp_path: Path) -> None:
    train(recipe, tmp_path / "whole")
    overrides = (*SMALL, *QUICK.get(recipe, ()), f"run.out={tmp_path / 'broken'}")
    with pytest.raises(EndedError):
        danlu.train(recipe, *overrides, listeners=[Until(6)])
    danlu.resume(tmp_path / "broken")
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")
    assert_same(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize("recipe", ["nice", "flow_matching", "diffusion"])
def test_how_many_rows_go_through_at_once_changes_no_result(recipe: str, tmp_path: Path) -> None:
    train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "cut", "run.pack_rows=10")
    assert_same(tmp_path / "whole", tmp_path / "cut", tolerance=2e-5)


def test_rows_that_are_paired_stay_together(tmp_path: Path) -> None:
    paired = ("method.pairing=optimal_transport", "method.minibatch=16")
    train("flow_matching", tmp_path / "whole", *paired)
    train("flow_matching", tmp_path / "cut", *paired, "run.pack_rows=32")
    assert_same(tmp_path / "whole", tmp_path / "cut", tolerance=2e-5)
    with pytest.raises(RecipeError, match="is not a multiple"):
        train("flow_matching", tmp_path / "odd", *paired, "data.step_rows=65")


@pytest.mark.parametrize("recipe", ["nice", "flow_matching"])
def test_two_ranks_make_the_update_of_one(recipe: str, tmp_path: Path) -> None:
    train(recipe, tmp_path / "one")
    with Launch("train", recipe, *SMALL, f"run.out={tmp_path / 'two'}") as launch:
        status, _, told = launch.end()
    assert status == 0, told
    assert_same(tmp_path / "one", tmp_path / "two", tolerance=2e-5)
    losses = [[row["loss"] for row in rows(tmp_path / name) if "loss" in row] for name in ("one", "two")]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_what_comes_out_samples_and_scores_in_units_of_the_data(tmp_path: Path) -> None:
    run = train("realnvp", tmp_path / "run", "data.label=label")
    density = danlu.load_density(run.path)
    x = density.sample(50, condition=1, seed=3)
    assert x.shape == (50, 2)
    assert torch.equal(x, density.sample(50, condition=1, seed=3))
    likely = density.log_prob(x, condition=np.ones(50, np.int64))
    assert likely.shape == (50,)
    assert likely.isfinite().all()
    with pytest.raises(CheckpointError, match="there is no density here"):
        danlu.load_density(tmp_path)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    run = train("nice", tmp_path / "run")
    (run.path / "final" / "density.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        danlu.load_density(run.path)


@pytest.mark.parametrize(
    ("recipe", "overrides", "error", "words"),
    [
        ("nice", ["data.train=moon"], DanluError, "moons"),
        ("nice", ["run.steps=null", "run.epochs=null"], RecipeError, "set steps, epochs or both"),
        ("nice", ["model=unet"], UnsupportedError, "network"),
        ("nice", ["adapter=lora"], RecipeError, "no such key"),
        ("flow_matching", ["method.pairing=nearest"], RecipeError, "method.pairing"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(
    recipe: str, overrides: list[str], error: type[DanluError], words: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=words):
        train(recipe, tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()


def test_rows_that_are_too_small_to_couple_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.random.default_rng(0).normal(size=(100, 1)).astype(np.float32))
    with pytest.raises(UnsupportedError, match="one number"):
        train("nice", tmp_path / "run", f"data.train={tmp_path / 'one.npy'}")


def test_a_run_goes_on_with_the_rows_it_began_with_and_no_others(tmp_path: Path) -> None:
    file, chance = tmp_path / "rows.npy", np.random.default_rng(0)
    np.save(file, chance.normal(size=(300, 2)).astype(np.float32))
    run = train("nice", tmp_path / "run", f"data.train={file}")
    np.save(file, chance.normal(size=(300, 2)).astype(np.float32))
    with pytest.raises(DataError, match="the run learned from other rows than these"):
        danlu.resume(run.path, "run.steps=12")


def test_a_row_that_is_not_finite_at_training_is_traced(tmp_path: Path) -> None:
    from danlu.density_experiment import assemble_density
    from danlu.engine.guards.nonfinite import trace_nonfinite
    from danlu.reading import read_recipe

    experiment = assemble_density(read_recipe("nice", SMALL))  # type: ignore[arg-type]
    updater = experiment.updater()
    groups = updater.groups(experiment.source().draw())
    groups[0].x[5] = torch.nan
    said = trace_nonfinite(updater, groups, 0).sentence
    assert "not finite" in said
    assert "row" in said


def test_what_is_for_sequences_says_so_of_a_density(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="learns from rows of an array"):
        danlu.verify("nice")
    run = train("nice", tmp_path / "run")
    with pytest.raises(DanluError):
        danlu.export(run.path, tmp_path / "out")
