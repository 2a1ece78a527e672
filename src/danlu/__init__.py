"""Danlu: one padding-free training system.

Example:
    ::

        import danlu

        run = danlu.train("quickstart", "run.steps=100")
        model = danlu.load(run.path / "final")
        print(model.generate("def "))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from danlu.exporting import Exported, export
    from danlu.generate import LanguageModel
    from danlu.recipe import Recipe, load_recipe
    from danlu.training import Run, resume, train
    from danlu.verifying import Verification, verify

__all__ = [
    "Exported",
    "LanguageModel",
    "Recipe",
    "Run",
    "Verification",
    "export",
    "load",
    "load_recipe",
    "resume",
    "train",
    "verify",
]

_HOMES = {
    "Exported": "danlu.exporting",
    "export": "danlu.exporting",
    "LanguageModel": "danlu.generate",
    "Recipe": "danlu.recipe",
    "load_recipe": "danlu.recipe",
    "Run": "danlu.training",
    "resume": "danlu.training",
    "train": "danlu.training",
    "Verification": "danlu.verifying",
    "verify": "danlu.verifying",
}


def load(path: Any, *, adapters: Any = (), trust_remote_code: bool = False) -> LanguageModel:
    """A model and its tokenizer from a directory in hub format, ready to generate and to score.

    Args:
        path: the directory, or `hub:org/name`.
        adapters: directories of adapters to put on it, by the names that they are chosen by, or a list of them.
        trust_remote_code: whether Python code that comes with the checkpoint may run.
    """
    from danlu.generate import LanguageModel

    return LanguageModel.load(path, adapters=adapters, trust_remote_code=trust_remote_code)


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `import danlu` itself is quick."""
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'danlu' has no attribute '{name}'")
