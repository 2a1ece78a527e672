"""What a run is made of, as it is written down, or told before it is run."""

from __future__ import annotations

import platform
from dataclasses import asdict
from functools import singledispatch
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeAlias

import numpy as np
import torch

from danlu.acting_experiment import ActingExperiment
from danlu.density_experiment import DensityExperiment
from danlu.engine.work import passes
from danlu.experiment import Experiment
from danlu.parts.quantized import num_bytes, num_weights
from danlu.registry import name_of
from danlu.spaces import in_words
from danlu.world.finite import map_of

AnyExperiment: TypeAlias = Experiment | ActingExperiment | DensityExperiment
"""An experiment of any family."""


@singledispatch
def plan(experiment: AnyExperiment) -> dict[str, Any]:
    """What would run: what it is made of and learns from; of sequences also the first step, the least it could take."""
    return {"device": experiment.device.name, **model_facts(experiment), **data_facts(experiment)[1]}


@plan.register
def _(experiment: Experiment) -> dict[str, Any]:
    policy, data = experiment.policy, experiment.data
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    updater = experiment.updater()
    groups = updater.groups(experiment.source.draw())
    packs = list(updater.packs(groups))
    backward = passes(policy) - 1
    flops = sum(backward * policy.flops(b.packed, len(b.targets)) + updater.forward_flops(b) for b in packs)
    tokens = sum(len(b) for b in packs)
    peak = experiment.device.peak_flops(policy.compute_dtype)
    return {
        "device": experiment.device.name,
        "architecture": policy.config.model_type,
        "parameters": num_weights(policy),
        "trained_parameters": trained,
        "train_documents": data.train.num_documents,
        "train_samples": data.train.expected[0],
        "train_tokens": data.train.expected[1],
        "held_out_samples": 0 if data.held_out is None else len(data.held_out),
        "vocabulary": data.tokenizer.vocab_size,
        "steps": experiment.steps,
        "first_step": {"samples": len(groups), "tokens": tokens, "packs": len(packs)},
        "weights_gradients_optimizer_bytes": num_bytes(policy) + _KEPT_BYTES * trained + 4 * _beside(experiment),
        "seconds_at_least": experiment.steps * flops / peak,
    }


def _beside(experiment: Experiment) -> int:
    """Weights of the models that are only asked, and stay in memory."""
    ways = experiment.recipe.method.asks
    kept = (model for role, model in experiment.asked.items() if ways[role] != "precomputed")
    return sum(p.numel() for model in kept for p in model.parameters())


def versions(experiment: AnyExperiment) -> dict[str, Any]:
    """What it runs on: packages, the machine, what is random."""
    packages = {}
    for package in ("danlu", "numpy", "safetensors", _PACKAGES[type(experiment)]):
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = "unknown"
    recipe = experiment.recipe
    return {
        **packages,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": {
            **experiment.device.describe(),
            **(_peak(experiment) if isinstance(experiment, Experiment) else {}),
        },
        "precision": recipe.run.precision,
        "seed": recipe.run.seed,
    }


def _peak(experiment: Experiment) -> dict[str, Any]:
    return {"peak_flops": experiment.device.peak_flops(experiment.policy.compute_dtype)}


@singledispatch
def data_facts(experiment: AnyExperiment) -> tuple[str, dict[str, Any]]:
    """What it learns from, as far as that has been read: the kind of event, and its fields."""
    raise NotImplementedError(type(experiment))


@data_facts.register
def _(experiment: Experiment) -> tuple[str, dict[str, Any]]:
    data = experiment.data
    facts = asdict(data.train.statistics)
    measured = {} if data.held_out is None else asdict(data.held_out.statistics)
    counts, edges = np.histogram(experiment.source.lengths, bins=min(40, max(1, experiment.recipe.data.context)))
    return "data", {
        "bytes": facts.pop("num_bytes"),
        **facts,
        "held_out_samples": 0 if data.held_out is None else len(data.held_out),
        "held_out": {name: value for name, value in measured.items() if value},
        "vocab_size": data.tokenizer.vocab_size,
        "length_histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


@data_facts.register
def _(experiment: ActingExperiment) -> tuple[str, dict[str, Any]]:
    data, environments = experiment.recipe.data, experiment.environments
    if environments is None or data.env is None:
        root = experiment.recipe.method.root
        return "world", {"env": None, **({} if root is None else {"root": root})}
    spaces = environments.spaces
    return "world", {
        "env": data.env,
        "num_envs": environments.num_envs,
        "env_steps": data.env_steps,
        "observation": in_words(spaces.observation),
        "action": in_words(spaces.action),
        "states": spaces.num_states,
        "actions": spaces.num_actions,
        **map_of(data.env, data.options),
    }


@data_facts.register
def _(experiment: DensityExperiment) -> tuple[str, dict[str, Any]]:
    return "rows", experiment.rows_facts()


@singledispatch
def model_facts(experiment: AnyExperiment) -> dict[str, Any]:
    """What is trained, and what it saves that the rest is not: gradients, averages, products."""
    raise NotImplementedError(type(experiment))


@model_facts.register
def _(experiment: DensityExperiment) -> dict[str, Any]:
    parameters = sum(p.numel() for p in experiment.policy.parameters())
    return {"density": name_of(type(experiment.recipe.method)), "parameters": parameters, "trainable": parameters}


@model_facts.register
def _(experiment: ActingExperiment) -> dict[str, Any]:
    kept = {name: value.numel() for name, value in experiment.policy.state_dict().items()}
    trained = sum(p.numel() for p in experiment.policy.parameters() if p.requires_grad)
    method = experiment.recipe.method
    agent = {"agent": name_of(type(method)), "goal": method.goal}
    return {**agent, "parameters": sum(kept.values()), "trainable": trained}


@model_facts.register
def _(experiment: Experiment) -> dict[str, Any]:
    policy, recipe = experiment.policy, experiment.recipe
    whole, trained = num_weights(policy), sum(p.numel() for p in policy.parameters() if p.requires_grad)
    saved = {"saved_bytes": _KEPT_BYTES * (whole - trained), "passes": round(passes(policy), 3)}
    return {
        "architecture": policy.config.model_type,
        "parameters": whole,
        "trainable": trained,
        **({} if recipe.adapter is None else {"adapter": name_of(type(recipe.adapter))}),
        **(saved if trained < whole else {}),
    }


_KEPT_BYTES = 12
"""Of each trained number: its gradient and two averages, in float32."""
_PACKAGES = {Experiment: "tokenizers", ActingExperiment: "gymnasium", DensityExperiment: "pyarrow"}
"""What a run of each family depends on most, beside what all do."""
