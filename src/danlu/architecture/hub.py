"""Reading a hub `config.json` without letting a setting pass unnoticed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from danlu.errors import UnsupportedError


def known_fields(config_class: type[BaseModel], config: Mapping[str, Any]) -> dict[str, Any]:
    """Those entries of a hub config that are fields of ours."""
    return {name: config[name] for name in config_class.model_fields if name in config}


def refuse(config: Mapping[str, Any], name: str, *allowed: object) -> None:
    """Stop when a hub config asks for something we would compute differently.

    Raises:
        UnsupportedError: when the entry is there and is none of the allowed values.
    """
    if name in config and config[name] not in allowed:
        raise UnsupportedError(
            f"the checkpoint's {name} is {config[name]!r}", where="config.json", do=f"Supported: {', '.join(map(repr, allowed))}."
        )
