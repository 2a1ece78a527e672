"""`danlu verify`: all checks on a recipe's own model and data."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from danlu.engine.launch import launched
from danlu.errors import RecipeError
from danlu.reading import load_recipe
from danlu.recipe import Recipe
from danlu.verifying.checks import CHECKS
from danlu.verifying.subject import prepared
from danlu.verifying.verdict import Verification


def verify(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *overrides: str,
    progress: Callable[[str], None] = lambda _: None,
) -> Verification:
    """Measure what Danlu promises on a recipe's own model and a few of its own samples, in float32 on its device.

    Nothing is left behind but the token cache: what checks write goes into a temporary folder.

    Args:
        recipe: a path, a built-in name, a dictionary or a `Recipe`.
        overrides: "dotted.key=value".
        progress: told the title of each check before it begins.

    Raises:
        DanluError: when the recipe cannot be meant, or its model or data cannot be used, as `danlu.train`.
    """
    if launched().size > 1:
        raise RecipeError("verify starts processes itself", do="Start it as one process, without torchrun.")
    loaded = load_recipe(recipe, overrides)
    with tempfile.TemporaryDirectory(prefix="danlu-verify-") as folder, prepared(loaded, Path(folder)) as subject:
        checks = []
        for check in CHECKS:
            progress(check.title)
            checks.append(check(subject))
        experiment = subject.experiment
        architecture = experiment.policy.config.model_type
        return Verification(experiment.device.name, architecture, len(subject.groups), subject.tokens, tuple(checks))
