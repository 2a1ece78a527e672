"""What is looked at: a recipe's own model and method, and a few samples of its own data."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from danlu.batch import Batch
from danlu.build import assemble
from danlu.contracts import SequenceMethod, SequenceModel
from danlu.engine.update import Updater
from danlu.experiment import Experiment
from danlu.random import fold
from danlu.reading import dump_recipe, load_recipe
from danlu.recipe import HubModel, Recipe

_FEWEST, _MOST = 2, 8
"""Samples that are looked at."""
_ENOUGH = 4
"""Samples to choose from; where an update has fewer, those of the next are added."""
_MOST_TOKENS = 1024
"""That they have together, unless the shortest `_FEWEST` have more."""
STEP = 0
"""The update that randomness is keyed by."""


@dataclass(frozen=True)
class Subject:
    """What checks are given.

    Attributes:
        experiment: the recipe's, in float32, with nothing compiled or recomputed.
        groups: a few samples of the first updates.
        folder: where a check may write; it is removed when all are done.
    """

    experiment: Experiment
    groups: Sequence[Batch]
    folder: Path

    @property
    def policy(self) -> SequenceModel:
        """The model that is trained."""
        return self.experiment.policy

    @property
    def method(self) -> SequenceMethod:
        """How it learns."""
        return self.experiment.recipe.method

    @property
    def scores(self) -> bool:
        """Whether it scores sequences, and predicts no tokens."""
        return self.policy.config.scores

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.experiment.device.torch

    @property
    def tokens(self) -> int:
        """How many tokens the groups have."""
        return sum(map(len, self.groups))

    @property
    def trusted(self) -> bool:
        """Whether code that comes with the checkpoint may run."""
        model = self.experiment.recipe.policy
        return isinstance(model, HubModel) and model.trust_remote_code

    @functools.cached_property
    def updater(self) -> Updater:
        """The engine's own way to a gradient."""
        return self.experiment.updater()

    @functools.cached_property
    def exported(self) -> Path:
        """The model and its tokenizer in hub format, as a run writes them at its end."""
        folder = self.folder / "exported"
        self.experiment.export(folder)
        return folder

    def keyed(self, batch: Batch) -> Batch:
        """The batch on the device with the random keys of `STEP`; each row's are its sample's and place's alone."""
        return batch.to(self.device).keyed(fold(self.experiment.recipe.run.seed, STEP))

    @functools.cached_property
    def coupling(self) -> str:
        """A sentence on what in the model is known to couple samples; "" where nothing is."""
        known = (nn.modules.batchnorm._BatchNorm,)
        found = next(((n, m) for n, m in self.policy.named_modules() if isinstance(m, known)), None)
        if found is None:
            return ""
        return f" '{found[0]}' is a {type(found[1]).__name__}, whose statistics are of all samples in a pack."


@contextmanager
def prepared(recipe: Recipe, folder: Path) -> Iterator[Subject]:
    """A recipe's subject, for as long as it is looked at.

    Args:
        recipe: the user's.
        folder: empty, for whatever is written.

    Raises:
        DanluError: for what cannot be made, as `danlu.build.assemble`.
    """
    with closing(assemble(_plain(recipe, folder))) as experiment:
        source, drawn = experiment.source, list[Any]()
        while len(drawn) < _ENOUGH and not source.exhausted:
            drawn += source.draw()
        groups = [recipe.method.group(sample) for sample in recipe.method.matched(drawn)]
        yield Subject(experiment, few(groups), folder)


def few(groups: Sequence[Batch]) -> list[Batch]:
    """The first groups that are short enough together, in order; the shortest where the first are too long."""
    chosen, tokens = list[Batch](), 0
    for group in groups:
        if len(chosen) < _MOST and tokens + len(group) <= _MOST_TOKENS:
            chosen.append(group)
            tokens += len(group)
    return chosen if len(chosen) >= _FEWEST else sorted(groups, key=len)[:_FEWEST]


def _plain(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe in float32, computed as written; nothing is left where its run would be."""
    raw: dict[str, Any] = dump_recipe(recipe.alone)
    raw["run"] |= {"precision": "fp32", "compile": False, "recompute": "none"}
    raw["run"] |= {"out": str(folder / "run"), "prompts": (), "loggers": ()}
    for bound in ("epochs", "max_time"):  # what is run here is bounded by its updates alone
        raw["run"].pop(bound, None)
    raw["run"]["steps"] = recipe.run.steps or 1
    if "precomputed" in recipe.method.asks.values():  # of all data, of which a few are looked at
        raw["method"]["reference"] = "model"
    if isinstance(recipe.data.held_out, float):  # what is held out stays so, and is hardly measured
        raw["data"]["held_out_samples"] = 1
    else:
        raw["data"]["held_out"] = None
    if recipe.data.quarantine is not None:
        raw["data"]["quarantine"] = str(folder / "quarantine")
    return load_recipe(raw)
