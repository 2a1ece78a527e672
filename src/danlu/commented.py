"""A recipe written out in full: every field there is, each with what it means."""

from __future__ import annotations

import textwrap
from typing import Any

from danlu.config import Config
from danlu.reading import dump_recipe, family_of, read_recipe
from danlu.recipe import HubModel
from danlu.registry import exported
from danlu.yaml_text import to_yaml

_WIDTH = 100


def commented_recipe(name: str) -> str:
    """A built-in recipe or a file's, resolved, with every field documented.

    Raises:
        RecipeError: when there is no such recipe, or it cannot be meant.
    """
    recipe = read_recipe(name, interpolate=False)
    lines = [f"# {name}: edit, then: danlu train FILE"]
    _write(recipe, dump_recipe(recipe), 0, lines)
    return "\n".join(lines) + "\n"


def _write(config: Config, values: dict[str, Any], depth: int, lines: list[str]) -> None:
    indent = "  " * depth
    for field, info in type(config).model_fields.items():
        part = getattr(config, field)
        if depth == 0:
            lines.append("")
        lines += textwrap.wrap(
            info.description or "",
            _WIDTH,
            initial_indent=f"{indent}# ",
            subsequent_indent=f"{indent}# ",
            break_on_hyphens=False,
        )
        if isinstance(part, Config):
            lines.append(f"{indent}{field}:")
            _write_name(part, depth + 1, lines)
            _write(part, values[field], depth + 1, lines)
        else:
            lines.append(f"{indent}{field}: {_scalar(values[field])}")


def _scalar(value: Any) -> str:
    return to_yaml(value, flow=True).removesuffix("\n")


def _write_name(config: Config, depth: int, lines: list[str]) -> None:
    """The public name of a part that is one of several, and the others'."""
    kind = next((e.kind for k in _KINDS for e in exported(k) if e.target is type(config)), None)
    if kind is None or isinstance(config, HubModel):
        return
    known = exported(kind)
    own = next(e for e in known if e.target is type(config))
    if kind == "method":
        known = [e for e in known if family_of(e.target) is family_of(type(config))]
    others = ", ".join(e.name for e in known)
    lines.append(f"{'  ' * depth}name: {own.name}  # {own.summary} One of: {others}")


_KINDS = ("adapter", "architecture", "method", "network", "optimizer", "schedule")
