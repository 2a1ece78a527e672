"""YAML as recipes are written in it, and where in a file each key stands."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from danlu.errors import RecipeError

Path = tuple[str, ...]
"""The keys that lead to a value."""


def to_yaml(value: Any, *, flow: bool = False) -> str:
    """Plain data as YAML that `load_recipe` reads back to equal data; with `flow`, on one line."""
    width = math.inf if flow else None
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=flow, width=width
    )
    return text.removesuffix("...\n")


def parse_yaml(text: str, name: str) -> tuple[dict[str, Any], dict[Path, int]]:
    """A mapping, and the line of each key in it.

    Args:
        text: the YAML.
        name: what faults call it.

    Raises:
        RecipeError: when it is none.
    """
    try:
        node, raw = yaml.compose(text, Loader=_Loader), yaml.load(text, Loader=_Loader)
        lines = _lines(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = name if mark is None else f"{name}:{mark.line + 1}"
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise RecipeError(f"the recipe is not YAML ({reason})", where=where) from None
    except RecursionError:
        raise RecipeError("the recipe is nested too deeply", where=name) from None
    if not isinstance(raw, dict):
        raise RecipeError("a recipe is a mapping of nouns: model, method, data, optimizer, run", where=name)
    return raw, lines


def parse_value(text: str) -> Any:
    """A value as one writes it on a command line: YAML, and what is none is text."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


class _Loader(yaml.SafeLoader):
    """YAML with numbers as people write them (1e-3) and no key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is not a word", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key.value}' is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# A date is text: nothing in a recipe is one, and a folder may be called so.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:timestamp"]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: in quotes what it would take for a number, and a text of several lines on one."""

    def text(self, value: str) -> yaml.ScalarNode:
        style = '"' if value.splitlines() not in ([], [value]) else None
        return self.represent_scalar("tag:yaml.org,2002:str", value, style)


_Dumper.add_representer(str, _Dumper.text)
for _kind_of_yaml in (_Loader, _Dumper):
    _kind_of_yaml.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+0123456789."),
    )


def _lines(node: yaml.Node | None, path: Path = ()) -> dict[Path, int]:
    if not isinstance(node, yaml.MappingNode):
        return {}
    found = {}
    for key, value in node.value:
        here = (*path, str(key.value))
        found[here] = key.start_mark.line + 1
        found.update(_lines(value, here))
    return found
