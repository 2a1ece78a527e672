"""How likely the rows of a file are under a density: `danlu eval` of one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from danlu.data.arrays import load_like
from danlu.density_files import read_density, recipe_of
from danlu.errors import RecipeError, UnsupportedError
from danlu.evaluation import Evaluation, Result

_DATA = "data.eval="
_AT_ONCE = 512
"""Rows that are scored at once; equations that are solved are followed as closely as the hardest of them asks."""


def score(model: str | Path, overrides: Sequence[str] = (), *, seed: int = 0) -> Evaluation:
    """Score rows: the mean of their log-likelihood, in nats of the data's own units, and each row's.

    Args:
        model: the density's directory, or its run's.
        overrides: "data.eval=FILE", of rows as it was trained on, and fields of its method that may be others after
            training, as "method.tolerance=1e-7".
        seed: of the noise on whole numbers.

    Raises:
        RecipeError: where no file is named, and for what cannot be another after training.
        CheckpointError: where there is no density, or its files are damaged.
        DataError: where rows are not as those it was trained on.
        UnsupportedError: where it has no likelihood.
    """
    names = [override.removeprefix(_DATA) for override in overrides if override.startswith(_DATA)]
    if len(names) != 1:
        raise RecipeError("one file is to be named whose rows are scored", where="data.eval", do="Give data.eval=FILE.")
    framed, facts = read_density(model, [override for override in overrides if not override.startswith(_DATA)])
    density, recipe = framed.density, recipe_of(model)
    if density.likelihood == "none":
        raise UnsupportedError("this density does not say how likely a row is", where=model)
    whole = (framed.frame.noise.flatten() > 0).tolist()
    arrays = load_like(names[0], recipe.data, recipe.run.seed + 1, facts, whole)
    pieces = []
    for start in range(0, len(arrays), _AT_ONCE):
        x, condition = arrays.take(np.arange(start, min(start + _AT_ONCE, len(arrays))))
        pieces.append(framed.log_prob(x, condition, seed=seed + start))
    each = torch.cat(pieces).double()
    mean, kind = float(each.mean()), "log_likelihood" if density.likelihood == "exact" else "log_likelihood_bound"
    metrics = {kind: mean}
    if facts.kind == "image":
        metrics["bits_per_dim"] = -mean / (facts.size * math.log(2))
    records = tuple({"row": row, kind: value} for row, value in enumerate(each.tolist()))
    return Evaluation((Result("likelihood", metrics, {"samples": len(each)}, records),))
