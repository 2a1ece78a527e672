"""Danlu: one padding-free training system.

Example:
    ::

        import danlu

        run = danlu.train("quickstart", "run.steps=100")
        model = danlu.load(run.path / "final")
        print(model.generate("def "))
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from danlu.errors import UnsupportedError

if TYPE_CHECKING:
    from danlu.acting_files import Policy, load_agent
    from danlu.density_files import load_density
    from danlu.exporting import Exported, export
    from danlu.generate import LanguageModel
    from danlu.reading import load_recipe
    from danlu.recipe import Recipe
    from danlu.training import Run, resume, train
    from danlu.verifying import Verification, verify

__all__ = [
    "Exported",
    "LanguageModel",
    "Policy",
    "Recipe",
    "Run",
    "Verification",
    "export",
    "load",
    "load_agent",
    "load_density",
    "load_recipe",
    "resume",
    "train",
    "verify",
]

_HOMES = {
    "Exported": "danlu.exporting",
    "export": "danlu.exporting",
    "LanguageModel": "danlu.generate",
    "Policy": "danlu.acting_files",
    "load_agent": "danlu.acting_files",
    "load_density": "danlu.density_files",
    "Recipe": "danlu.recipe",
    "load_recipe": "danlu.reading",
    "Run": "danlu.training",
    "resume": "danlu.training",
    "train": "danlu.training",
    "Verification": "danlu.verifying",
    "verify": "danlu.verifying",
}
_SYSTEM = os.name


def require_system() -> None:
    """See that this is a system that Danlu runs on: its locks, links and signals are those of POSIX.

    Raises:
        UnsupportedError: when it is another.
    """
    if _SYSTEM != "posix":
        raise UnsupportedError("Danlu runs on Linux and macOS", do="On Windows, use it within WSL.")


def load(path: Any, *, adapters: Any = (), trust_remote_code: bool = False) -> LanguageModel:
    """A model and its tokenizer from a directory in hub format, ready to generate and to score.

    Args:
        path: the directory, or `hub:org/name`.
        adapters: directories of adapters to put on it, by the names that they are chosen by, or a list of them.
        trust_remote_code: whether Python code that comes with the checkpoint may run.
    """
    require_system()
    from danlu.generate import LanguageModel

    return LanguageModel.load(path, adapters=adapters, trust_remote_code=trust_remote_code)


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `import danlu` itself is quick."""
    if name in _HOMES:
        require_system()
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'danlu' has no attribute '{name}'")
