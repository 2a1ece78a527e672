"""What a run is made of, as it is written down, or told before it is run."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from danlu.engine.work import passes
from danlu.experiment import Experiment
from danlu.parts.quantized import num_bytes, num_weights
from danlu.registry import name_of


def plan(experiment: Experiment) -> dict[str, Any]:
    """What would run: sizes, the first step, the least it could take."""
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


def versions(experiment: Experiment) -> dict[str, Any]:
    """What it runs on: packages, the machine, what is random."""
    packages = {}
    for package in ("danlu", "numpy", "safetensors", "tokenizers"):
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
            "peak_flops": experiment.device.peak_flops(experiment.policy.compute_dtype),
        },
        "precision": recipe.run.precision,
        "seed": recipe.run.seed,
    }


def data_facts(experiment: Experiment) -> dict[str, Any]:
    """What it learns from, as far as that has been read."""
    data = experiment.data
    facts = asdict(data.train.statistics)
    measured = {} if data.held_out is None else asdict(data.held_out.statistics)
    counts, edges = np.histogram(experiment.source.lengths, bins=min(40, max(1, experiment.recipe.data.context)))
    return {
        "bytes": facts.pop("num_bytes"),
        **facts,
        "held_out_samples": 0 if data.held_out is None else len(data.held_out),
        "held_out": {name: value for name, value in measured.items() if value},
        "vocab_size": data.tokenizer.vocab_size,
        "length_histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def model_facts(experiment: Experiment) -> dict[str, Any]:
    """What is trained, and what it saves that the rest is not: gradients, averages, products."""
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
