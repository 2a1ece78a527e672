"""Checkpoints by their name on the hub, through the `huggingface_hub` package where it is installed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from danlu.errors import CheckpointError

_PREFIX = "hub:"
_WANTED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
"""Weights, settings and tokenizers; never a pickle, never code."""


def local_directory(model: str | Path) -> Path:
    """The directory of a model: a path as it is; of ``hub:org/name`` or ``hub:org/name@revision``, its local copy.

    Raises:
        CheckpointError: when the package is absent or the model cannot be had.

    Example:
        >>> local_directory("runs/first/final").as_posix()
        'runs/first/final'
    """
    if not str(model).startswith(_PREFIX):
        return Path(model).expanduser()
    name, _, revision = str(model).removeprefix(_PREFIX).partition("@")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        do = "Install it with `pip install danlu[hub]`, or give a directory."
        raise CheckpointError("a model of the hub needs the `huggingface_hub` package", where=model, do=do) from None
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(_WANTED)))
    except Exception as fault:  # of the network, the hub, or the name
        reason = (str(fault).strip() or type(fault).__name__).splitlines()[0].rstrip(".")
        what = f"the hub's model cannot be had ({reason})"
        raise CheckpointError(what, where=model, do="Check the name, or download it first.") from None


_OTHERS = (
    ("density.json", "a density", "Make rows of it by danlu generate, or score rows by danlu eval."),
    ("agent.json", "an agent", "Watch it by danlu play, or let it act by danlu.load_agent."),
)
"""What else may lie in a directory that training has left: its file, what it is, and what it is for."""


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: when the file is absent or holds none.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what, do = "the file is absent", "Give a directory in hub format."
        for other, named, use in _OTHERS:
            if (file.parent / other).is_file():
                what, do = f"the file is absent, for {named} is here and no language model", use
        raise CheckpointError(what, where=file, do=do) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError("the file is not JSON", where=file) from error
    if not isinstance(content, dict):
        raise CheckpointError("the file holds no JSON object", where=file)
    return content


def ending_tokens(directories: Iterable[Path]) -> list[int]:
    """The tokens that end a text, as the first of some directories says that says so; none where none does.

    Raises:
        CheckpointError: when a file there is not JSON.
    """
    for file in (directory / name for directory in directories for name in ("generation_config.json", "config.json")):
        listed = read_json(file).get("eos_token_id") if file.is_file() else None
        if listed is not None:
            return [int(token) for token in (listed if isinstance(listed, list) else [listed])]
    return []
