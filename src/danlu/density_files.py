"""Densities as files, and back: tensors, and what they are made from as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from danlu.data.arrays import Facts
from danlu.density import Space
from danlu.errors import CheckpointError, RecipeError
from danlu.parts.frame import Frame
from danlu.parts.framed import Framed
from danlu.reading import AnyRecipe, dump_recipe, read_recipe
from danlu.recipe_density import DensityRecipe
from danlu.registry import name_of

_CONFIG, _TENSORS = "density.json", "model.safetensors"


def density_of(recipe: DensityRecipe, facts: Facts, frame: Frame) -> Framed:
    """A recipe's density at its start.

    Args:
        recipe: what says so.
        facts: what rows are.
        frame: how they are shown to the network.

    Raises:
        UnsupportedError: when its method cannot learn such rows.
    """
    method = recipe.method
    shape = facts.shape if method.takes_images or len(facts.shape) == 1 else (facts.size,)
    space = Space(shape, classes=len(facts.classes), features=len(facts.features))
    method.check(space)
    return Framed(method.density(space, recipe.model, recipe.run.seed), frame)


def save_density(framed: Framed, recipe: DensityRecipe, facts: Facts, directory: Path) -> None:
    """Write a density, and all that it takes to make rows of the data's units with it."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in framed.state_dict().items()}, directory / _TENSORS)
    config = {"recipe": dump_recipe(recipe), "rows": facts.as_json()}
    (directory / _CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def is_density(path: Path) -> bool:
    """Whether a density, or a run that has left one, lies in a directory."""
    return (path / _CONFIG).is_file() or (path / "final" / _CONFIG).is_file()


def load_density(path: str | Path) -> Framed:
    """A density as a run has left it: its directory, or the run's.

    Example:
        ``density = danlu.load_density("runs/f/final"); rows = density.sample(1000)``

    Raises:
        CheckpointError: when there is none, or its files are damaged.
    """
    return read_density(path)[0]


def read_density(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Framed, Facts]:
    """The same, with what its rows are.

    Args:
        path: see `load_density`.
        overrides: fields of its method that are to be others than it was trained by, as "method.steps=10".

    Raises:
        CheckpointError: see `load_density`.
        RecipeError: for fields that are part of what was learned.
    """
    folder, recipe, facts = _read(path)
    if overrides:
        _refuse_learned(recipe, overrides)
        recipe = _as_density(read_recipe(dump_recipe(recipe), overrides))
    framed = density_of(recipe, facts, Frame(facts.shape, len(facts.features)))
    try:
        framed.load_state_dict(load_file(folder / _TENSORS))
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"the density's tensors do not fit it: {first}", where=folder) from error
    except (OSError, SafetensorError) as error:
        raise _unreadable(folder, error) from error
    framed.class_names = facts.classes
    return framed.eval(), facts


def recipe_of(path: str | Path) -> DensityRecipe:
    """What a density was trained by.

    Raises:
        CheckpointError: see `load_density`.
    """
    return _read(path)[1]


def _read(path: str | Path) -> tuple[Path, DensityRecipe, Facts]:
    folder = Path(path)
    folder = folder / "final" if (folder / "final" / _CONFIG).exists() else folder
    if not (folder / _CONFIG).exists():
        do = "Give a run of a method of densities, which has ended, or its final/."
        raise CheckpointError(f"there is no density here ({_CONFIG})", where=path, do=do)
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        return folder, _as_density(read_recipe(config["recipe"])), Facts.from_json(config["rows"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(folder, error) from error


def _as_density(recipe: AnyRecipe) -> DensityRecipe:
    if not isinstance(recipe, DensityRecipe):
        raise TypeError("its recipe is of something else")
    return recipe


def _unreadable(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"the density's files cannot be read: {error}", where=folder)


def _refuse_learned(recipe: DensityRecipe, overrides: Sequence[str]) -> None:
    """Refuse to have a density be another than the one that was learned."""
    method = type(recipe.method)
    known = ", ".join(f"method.{name}" for name in sorted(method.later))
    do = f"These can be others: {known}." if known else f"No field of {name_of(method)} can be another."
    for override in overrides:
        place, _, name = override.partition("=")[0].partition(".")
        if place != "method":
            what = f"only fields of the method can be said again after training, and this is {override}"
            raise RecipeError(what, where="KEY=VALUE", do=do)
        if name in method.model_fields and name not in method.later:
            raise RecipeError(f"method.{name} is part of what was learned", where=override, do=do)
