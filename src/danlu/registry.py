"""One decorator gives a class its public name; what is exported can be listed and looked up, by plugins too.

A kind is a room of the house: the classes exported as ``method`` live in ``danlu.method``, one file each. Looking a
name up imports that room (and the plugins installed under the entry-point group ``danlu``), so a file is enough to add
a method.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, TypeVar

from danlu.errors import RecipeError, did_you_mean

T = TypeVar("T", bound=type)


@dataclass(frozen=True)
class Export:
    """A public name: what it stands for and where it comes from."""

    kind: str
    name: str
    target: type
    source: str

    @property
    def summary(self) -> str:
        """The first sentence of the class's docstring."""
        return (self.target.__doc__ or "").strip().split("\n")[0]


_exports: dict[tuple[str, str], Export] = {}
_rooms = {
    "adapter": "danlu.adapter",
    "architecture": "danlu.architecture",
    "method": "danlu.method",
    "network": "danlu.parts.network",
    "optimizer": "danlu.engine.optimizer",
    "schedule": "danlu.engine.schedule",
    "extractor": "danlu.evaluation.extractors",
}


def export(kind: str, name: str, *, source: str) -> Callable[[T], T]:
    """Give a class the public name `name` among the `kind` s.

    Args:
        kind: the noun of the recipe it belongs to, as ``method`` or ``architecture``.
        name: what a recipe calls it.
        source: author, year and link of the work it follows.

    Raises:
        RecipeError: when another class has that name already.
    """

    def register(target: T) -> T:
        known = _exports.get((kind, name))
        if known is not None and _origin(known.target) != _origin(target):
            raise RecipeError(f"two {kind}s are called '{name}': {known.target!r} and {target!r}", do="Rename one.")
        _exports[kind, name] = Export(kind, name, target, source)
        return target

    return register


def kinds() -> list[str]:
    """The kinds of things that can be exported."""
    _plugins()
    return sorted({*_rooms, *(kind for kind, _ in _exports)})


def exported(kind: str) -> list[Export]:
    """Everything exported as `kind`, by name.

    Raises:
        RecipeError: when there is no such kind.
    """
    _discover(kind)
    return sorted((e for e in _exports.values() if e.kind == kind), key=lambda e: e.name)


def lookup(kind: str, name: str) -> Any:
    """The class called `name`.

    Example:
        >>> lookup("method", "next_token").__name__
        'NextToken'

    Raises:
        RecipeError: when no such name is exported; the nearest one is suggested.
    """
    _discover(kind)
    found = _exports.get((kind, name))
    if found is None:
        raise RecipeError(f"no {kind} is called '{name}'", do=did_you_mean(name, [e.name for e in exported(kind)]))
    return found.target


def name_of(target: type) -> str:
    """The public name of an exported class.

    Raises:
        RecipeError: when it has none.
    """
    for entry in _exports.values():
        if entry.target is target:
            return entry.name
    raise RecipeError(f"{target!r} is not exported", do="Give it a name with @export.")


def _origin(target: type) -> tuple[str, str]:
    return target.__module__, target.__qualname__


def _discover(kind: str) -> None:
    _plugins()
    if kind in _rooms:
        room = importlib.import_module(_rooms[kind])
        for module in pkgutil.iter_modules(getattr(room, "__path__", [])):
            importlib.import_module(f"{room.__name__}.{module.name}")
    elif not any(k == kind for k, _ in _exports):
        raise RecipeError(f"there is no kind '{kind}'", do=did_you_mean(kind, _rooms))


_plugins_loaded = False


def _plugins() -> None:
    global _plugins_loaded  # noqa: PLW0603 - entry points are read once a process
    if not _plugins_loaded:
        _plugins_loaded = True
        for plugin in entry_points(group="danlu"):
            plugin.load()
