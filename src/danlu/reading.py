"""A recipe as people write it, YAML, a dictionary, overrides, into the classes it configures, and back.

It is read against those classes one by one, so that each fault is named by its place: the file's line, or the override.
"""

from __future__ import annotations

import copy
import sysconfig
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from types import NoneType
from typing import Any, TypeAlias, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from danlu.config import Config, Kind
from danlu.errors import RecipeError, did_you_mean
from danlu.recipe import HubModel, Recipe, Roles
from danlu.recipe_acting import ActingRecipe
from danlu.recipe_density import DensityRecipe
from danlu.registry import exported, lookup, name_of
from danlu.yaml_text import parse_value, parse_yaml


def builtin_recipes() -> list[str]:
    """The names of the recipes that come with Danlu."""
    return sorted(f.name.removesuffix(".yaml") for f in files("danlu.recipes").iterdir() if f.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """A built-in recipe as written, or the file at a path.

    Raises:
        RecipeError: when there is neither.
    """
    if name in builtin_recipes():
        return (files("danlu.recipes") / f"{name}.yaml").read_text(encoding="utf-8")
    try:
        return Path(name).read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        hint = did_you_mean(name, builtin_recipes())
        raise RecipeError("there is no such recipe", where=name, do=f"Give a file or a built-in name. {hint}") from None
    except OSError as error:
        raise RecipeError(f"the recipe cannot be read: {error.strerror}", where=name) from None
    except UnicodeDecodeError:
        raise RecipeError("the recipe is not UTF-8 text", where=name) from None


AnyRecipe: TypeAlias = Recipe | ActingRecipe | DensityRecipe
"""A recipe of any family."""
_FAMILIES: dict[str, type[AnyRecipe]] = {"experience": ActingRecipe, "rows": DensityRecipe}
"""By what a method learns from; all others learn from sequences."""


def family_of(method: type[Any]) -> type[AnyRecipe]:
    """The recipes that a method is for."""
    return _FAMILIES.get(method.learns_from, Recipe)


def load_recipe(
    source: str | Path | Mapping[str, Any] | AnyRecipe, overrides: Sequence[str] = (), *, interpolate: bool = True
) -> Recipe:
    """`read_recipe` of a method that learns from sequences.

    Raises:
        RecipeError: also where it learns from anything else.
    """
    recipe = read_recipe(source, overrides, interpolate=interpolate)
    if isinstance(recipe, Recipe):
        return recipe
    source = "acting" if isinstance(recipe, ActingRecipe) else "rows of an array"
    what = f"{name_of(type(recipe.method))} learns from {source}, and this is for models of sequences"
    raise RecipeError(what, where="method", do="Use danlu train, danlu resume or danlu report.")


def read_recipe(
    source: str | Path | Mapping[str, Any] | AnyRecipe, overrides: Sequence[str] = (), *, interpolate: bool = True
) -> AnyRecipe:
    """A recipe from a file, a built-in name or a dictionary, with overrides.

    Args:
        source: the recipe.
        overrides: "dotted.key=value", the value as YAML.
        interpolate: whether ``${stdlib}`` becomes the folder it stands for.

    Raises:
        RecipeError: for whatever in it cannot be meant, by its place.
    """
    if isinstance(source, AnyRecipe):
        source = dump_recipe(source)
    if isinstance(source, Mapping):
        raw, name = copy.deepcopy(dict(source)), "recipe"
        lines: dict[tuple[str, ...], int] = {}
    else:
        name = str(source)
        raw, lines = parse_yaml(recipe_text(name), name)
    places = {path: f"{name}:{line}" for path, line in lines.items()}
    for override in overrides:
        path = set_override(raw, override)
        places = {place: line for place, line in places.items() if place[: len(path)] != path}
        places[path] = f"override {override}"
    return Reader(places, name).recipe(_interpolated(raw) if interpolate else raw)


def dump_recipe(recipe: Config) -> dict[str, Any]:
    """A recipe as plain data that `read_recipe` reads back to an equal one."""
    out: dict[str, Any] = {}
    for field, info in type(recipe).model_fields.items():
        value = getattr(recipe, field)
        if isinstance(value, Config):
            named = _kind(info) is not None and not isinstance(value, HubModel | Roles)
            out[field] = {**({"name": name_of(type(value))} if named else {}), **dump_recipe(value)}
        else:
            out[field] = recipe.model_dump(mode="json", include={field})[field]
    return out


def set_override(raw: dict[str, Any], override: str) -> tuple[str, ...]:
    """Set one dotted key in place; give the path of what was not there before, or was something else."""
    key, equals, text = override.partition("=")
    path = tuple(key.split("."))
    if not equals or not all(path):
        raise RecipeError("an override is key=value", where=f"override {override}", do="For example run.steps=100.")
    value = parse_value(text)
    here, anew = raw, path
    for depth, part in enumerate(path[:-1]):
        below = here.get(part)
        if isinstance(below, str):  # the short form of a named part
            below = {"path" if _is_model(path[: depth + 1]) and not _is_architecture(below) else "name": below}
        if not isinstance(below, Mapping):
            anew = min(anew, path[: depth + 1], key=len)
        here[part] = dict(below) if isinstance(below, Mapping) else {}
        here = here[part]
    here[path[-1]] = value
    return anew


def _interpolated(value: Any) -> Any:
    """``${stdlib}`` stands for the folder of this Python's standard library."""
    if isinstance(value, str):
        return value.replace("${stdlib}", sysconfig.get_paths()["stdlib"])
    if isinstance(value, Mapping):
        return {key: _interpolated(item) for key, item in value.items()}
    return [_interpolated(item) for item in value] if isinstance(value, list | tuple) else value


def _is_model(path: tuple[str, ...]) -> bool:
    return path == ("model",) or (path[0] == "model" and path[1:] in {(role,) for role in Roles.model_fields})


def _is_architecture(name: str) -> bool:
    return any(e.name == name for e in exported("architecture"))


def _kind(info: FieldInfo) -> str | None:
    marks = [
        *info.metadata,
        *(mark for part in get_args(info.annotation) for mark in getattr(part, "__metadata__", ())),
    ]
    return next((mark.kind for mark in marks if isinstance(mark, Kind)), None)


def _types(annotation: Any) -> set[Any]:
    """The types that an annotation is made of, at any depth."""
    return {annotation}.union(*(_types(part) for part in get_args(annotation)))


def _plainest(error: ValidationError) -> ErrorDetails:
    """The first field's fault; of a value that may be of several types, what is wrong with it as the one that it is."""
    errors = error.errors()
    same = [e for e in errors if e["loc"][:1] == errors[0]["loc"][:1]]
    return next((e for e in same if not e["type"].endswith(("_type", "_parsing"))), errors[0])


class Reader:
    """Plain data to configs, every fault by its place."""

    def __init__(self, places: Mapping[tuple[str, ...], str], name: str) -> None:
        self.places, self.name = places, name

    def recipe(self, raw: Mapping[str, Any]) -> AnyRecipe:
        """All of it."""
        method = raw.get("method")
        name = method.get("name") if isinstance(method, Mapping) else method
        known = (e.target for e in exported("method") if e.name == name)
        read = self.config(next(map(family_of, known), Recipe), raw, ())
        assert isinstance(read, AnyRecipe)
        return read

    def fail(self, path: tuple[str, ...], what: str, do: str = "") -> RecipeError:
        """An error at the nearest place that is known."""
        near = next((self.places[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.places), self.name)
        return RecipeError(f"{'.'.join(path)}: {what}" if path else what, where=near, do=do)

    def config(self, kind: type[Config], raw: Any, path: tuple[str, ...]) -> Config:
        """One class from its fields, its named and nested parts first."""
        if not isinstance(raw, Mapping):
            raise self.fail(path, f"expected fields of {kind.__name__}, not {raw!r}")
        values = {}
        for key, value in raw.items():
            info = kind.model_fields.get(str(key))
            if info is None:
                raise self.fail((*path, str(key)), "there is no such key", did_you_mean(str(key), kind.model_fields))
            values[str(key)] = self.part(info, value, (*path, str(key)))
        try:
            return kind(**values)
        except ValidationError as error:
            first = _plainest(error)
            named = first["type"] in ("missing", "extra_forbidden")
            keep = [i for i, part in enumerate(first["loc"]) if i == 0 or isinstance(part, int)]
            keep += [len(first["loc"]) - 1] if named and len(first["loc"]) > 1 else []
            place = (*path, *(str(first["loc"][i]) for i in dict.fromkeys(keep)))
            reason = first["msg"].removeprefix("Value error, ")
            if first["type"] == "missing":
                name = ".".join(place)
                raise self.fail(place, "it is not set", f"Write it, or give {name}=... after the recipe.") from None
            if first["type"] == "extra_forbidden":
                raise self.fail(place, "there is no such key") from None
            given = "" if first["type"] == "value_error" else f", not {first['input']!r}"
            raise self.fail(place, reason[0].lower() + reason[1:] + given) from None

    def part(self, info: FieldInfo, value: Any, path: tuple[str, ...]) -> Any:
        """The value of one field."""
        kind = _kind(info)
        if value is None and NoneType in _types(info.annotation):
            return None
        if isinstance(value, bool) and bool not in _types(info.annotation) and not kind:
            raise self.fail(path, f"expected another kind of value, not {str(value).lower()}")
        if kind is not None and not isinstance(value, Config):
            return self.named(kind, value, path, info.get_default(call_default_factory=True))
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel) and not isinstance(value, BaseModel):
            return self.config(annotation, value, path)  # type: ignore[arg-type]
        return value

    def expanded(self, kind: str, value: str, path: tuple[str, ...]) -> dict[str, Any]:
        """The short form of a part: its name; of a model, an architecture's or a path."""
        if kind != "architecture" or _is_architecture(value):
            return {"name": value}
        hint = did_you_mean(value, (e.name for e in exported(kind)))
        if not value.startswith("hub:") and not Path(value).exists() and not hint.startswith("Known"):
            raise self.fail(path, f"'{value}' is neither an architecture nor a directory", hint)
        return {"path": value}

    def named(self, kind: str, value: Any, path: tuple[str, ...], default: Any) -> Config:
        """One of the exported classes, by its name, or the one it is by default; a model also by its path."""
        if isinstance(value, str):
            value = self.expanded(kind, value, path)
        if not isinstance(value, Mapping):
            raise self.fail(path, f"expected a name ({kind}) or a mapping with one, not {value!r}")
        if path == ("model",) and not Roles.model_fields.keys().isdisjoint(value):
            return self.roles(value, path)
        if kind == "architecture" and "path" in value and "name" not in value:
            return self.config(HubModel, value, path)
        fields = dict(value)
        if "name" not in fields:
            if not isinstance(default, Config):
                known = ", ".join(e.name for e in exported(kind))
                raise self.fail(path, f"it does not name its {kind}", f"Known: {known}.")
            fields["name"] = name_of(type(default))
        name = fields.pop("name")
        try:
            found = lookup(kind, str(name))
        except RecipeError as error:
            raise self.fail((*path, "name"), error.what, error.do) from None
        return self.config(found, fields, path)

    def roles(self, value: Mapping[str, Any], path: tuple[str, ...]) -> Config:
        """Models by role; where the policy is not among them, it is what the other fields say."""
        if "policy" in value:
            return self.config(Roles, value, path)
        named = {role: value[role] for role in Roles.model_fields if role in value}
        rest = {key: field for key, field in value.items() if key not in named}
        return self.config(Roles, {"policy": self.named("architecture", rest, path, None), **named}, path)
