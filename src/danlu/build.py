"""From a recipe to objects: the one place that knows concrete classes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import psutil
import torch

from danlu.adapter.hub import is_adapter
from danlu.architecture.hub import model_directory
from danlu.contracts import SequenceModel
from danlu.data import Data, DataConfig, DataSource, Tokenizer, build_data
from danlu.engine.device import Device
from danlu.engine.guards.weights import fingerprints, total, trainable
from danlu.engine.guards.words import listed
from danlu.engine.parallel import choose
from danlu.engine.ranks import ALONE, Ranks, launch_began
from danlu.engine.recompute import recompute
from danlu.errors import DataError, RecipeError, RunError, UnsupportedError
from danlu.experiment import Experiment
from danlu.parts.norm import LayerNorm, RMSNorm
from danlu.pretrained import load_pretrained
from danlu.random import place_key
from danlu.recipe import HubModel, Recipe, dump_recipe

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
_ROOMY = 0.5
"""The share of the free host memory that the models of all ranks may take at once."""


def assemble(recipe: Recipe, ranks: Ranks = ALONE) -> Experiment:
    """Make and check everything a recipe names.

    Args:
        recipe: what is to be.
        ranks: the processes that do it, of which this is one.

    Raises:
        RecipeError, DataError, CheckpointError, UnsupportedError: for what cannot be made.
    """
    began = time.monotonic() - (time.time() - launch_began())
    device = Device.choose(recipe.run.device, recipe.run.threads, ranks)
    precision = _precision(recipe, device)
    with ranks.one_by_one():
        data = build_data(_own(recipe.data, ranks), recipe.run.seed, model_tokenizer(recipe))
    with _closed_on_fault(data):
        source = data.source(recipe.data, seed=recipe.run.seed, epochs=recipe.run.epochs)
        with ranks.together():
            source.exhausted  # noqa: B018 - reads what comes first, whose faults are told before anything is written
            recipe = _resolved(recipe, data)
            roomy = _fits_whole(recipe, ranks)
        with nullcontext() if all(ranks.gather(roomy)) else ranks.in_turn():
            policy = _model(recipe)
            base = _adapted(recipe, policy, data.tokenizer)
            _check_fit(recipe, policy, data)
            trainable(policy)
            alike = _start(recipe, source, policy) if ranks.size > 1 else {}
            recompute(policy, recipe.run.recompute)
            arm(policy, precision, compiled=recipe.run.compile)
            run = recipe.run
            parallel = choose(run.parallel, ranks, policy, device.memory_bytes, ring=run.context_parallel)
            parallel.lay_out(policy, device.torch)
        _require_alike(ranks, alike)
        experiment = Experiment(recipe, device, data, source, policy, parallel, began, base)
        experiment.check_prompts()
    return experiment


def _start(recipe: Recipe, source: DataSource, policy: SequenceModel) -> dict[str, Any]:
    """What is the same on every rank where a run is one run."""
    return {
        "recipes": dump_recipe(recipe),
        "data": source.state_dict(),
        "weights": total(fingerprints(policy.parameters())),
    }


def _require_alike(ranks: Ranks, start: Mapping[str, Any]) -> None:
    """Refuse ranks that start from different things, as from files that differ from machine to machine.

    Raises:
        RunError: naming what differs, and where.
    """
    every = ranks.gather(start)
    for name in start:
        if others := [rank for rank, one in enumerate(every) if one[name] != every[0][name]]:
            what = f"the ranks do not start alike: the {name} of rank {listed(others, 8)} are not those of rank 0"
            raise RunError(what, do="Give every machine the same files and the same command.")


def _own(data: DataConfig, ranks: Ranks) -> DataConfig:
    """Of the ranks on a machine one encodes ahead; the others read what it has written."""
    return data.model_copy(update={"workers": 1}) if ranks.local_rank else data


def _resolved(recipe: Recipe, data: Data) -> Recipe:
    """The recipe with what it left open of the model: the vocabulary is the tokenizer's."""
    if isinstance(recipe.model, HubModel) or getattr(recipe.model, "vocab_size", 0) is not None:
        return recipe
    return recipe.model_copy(
        update={"model": recipe.model.model_copy(update={"vocab_size": data.tokenizer.vocab_size})}
    )


def _model(recipe: Recipe) -> SequenceModel:
    """The model that a recipe names, on the host."""
    if isinstance(recipe.model, HubModel):
        if recipe.adapter is not None and is_adapter(recipe.model.directory):
            what = "the model is an adapter itself, which is trained on as it is"
            raise RecipeError(what, where="adapter", do="Leave adapter out, or merge it first: danlu export --merge.")
        policy = load_pretrained(recipe.model.directory, **recipe.model.model_dump(exclude={"path"}))
    else:
        policy = recipe.model.build()
        recipe.model.initialize(policy, recipe.run.seed)
    return policy


def _adapted(recipe: Recipe, policy: SequenceModel, tokenizer: Tokenizer) -> int | None:
    """Put the recipe's adapter into the model; the fingerprint of what it stands on, None where there is no adapter."""
    if recipe.adapter is not None:
        base = total(fingerprints(policy.parameters()))
        recipe.adapter.encoded(tokenizer.encode).attach(policy, seed=recipe.run.seed)
        return base
    if policy.adapted is not None:
        held = dict(policy.named_parameters())
        return total(fingerprints(held[name] for name in policy.hub_names()))
    return None


@contextmanager
def _closed_on_fault(data: Data) -> Iterator[None]:
    try:
        yield
    except BaseException:
        data.train.close()
        raise


def model_tokenizer(recipe: Recipe) -> Tokenizer | None:
    """The tokenizer of the checkpoint that a recipe starts from, unless it names another."""
    if isinstance(recipe.model, HubModel) and recipe.data.tokenizer is None:
        return Tokenizer.load(model_directory(recipe.model.directory))
    return None


def _fits_whole(recipe: Recipe, ranks: Ranks) -> bool:
    """Whether every rank of a machine may have the whole model on the host at once, which is quicker than in turn."""
    if ranks.local_size == 1:
        return True
    if isinstance(recipe.model, HubModel):
        held = 2 * sum(file.stat().st_size for file in recipe.model.directory.glob("*.safetensors"))  # as float32
    else:
        with torch.device("meta"):
            held = 4 * sum(p.numel() for p in recipe.model.build().parameters())
    return ranks.local_size * held < _ROOMY * psutil.virtual_memory().available


def prepare(model: SequenceModel, device: Device, precision: torch.dtype, *, compiled: bool) -> None:
    """Put a model where and how it will run."""
    model.to(device.torch)
    arm(model, precision, compiled=compiled)


def arm(model: SequenceModel, precision: torch.dtype, *, compiled: bool) -> None:
    """Say how a model will run, and give each place that draws randomness its key."""
    model.compute_dtype = precision
    for name, module in model.named_modules():
        place = dict(module.named_buffers(recurse=False)).get("place")
        if place is not None:
            place.fill_(place_key(name))
    if compiled:
        for part in (*model.blocks, *(m for m in model.children() if isinstance(m, RMSNorm | LayerNorm))):
            part.compile(dynamic=True)


def _precision(recipe: Recipe, device: Device) -> torch.dtype:
    if recipe.run.precision == "fp16":
        slow = (
            "fp16 products on a CPU are hundreds of times slower than bf16"
            if device.kind == "cpu"
            else "fp16 needs loss scaling"
        )
        raise UnsupportedError(slow, where="run.precision", do="Use run.precision=bf16.")
    return PRECISIONS[recipe.run.precision]


def _check_fit(recipe: Recipe, model: SequenceModel, data: Data) -> None:
    """Data, model and run go together.

    Raises:
        DataError: when a token has no embedding.
        RecipeError: when a sample is longer than the model's positions.
    """
    try:
        data.train.bound_tokens(model.config.vocabulary)
    except DataError as fault:
        raise DataError(fault.what, where=recipe.data.tokenizer or "data.tokenizer", do=fault.do) from None
    if data.held_out is not None and data.held_out.max_token >= model.config.vocabulary:
        raise DataError(
            f"the data hold token {data.held_out.max_token}, and the model's last is {model.config.vocabulary - 1}",
            where=recipe.data.tokenizer or "data.tokenizer",
            do="Use the model's own tokenizer, or raise model.vocab_size.",
        )
    if model.longest is not None and recipe.data.context > model.longest:
        taken = "" if model.longest == model.config.longest else ", the adapter's own left out"
        raise RecipeError(
            f"data.context ({recipe.data.context}) exceeds the model's {model.longest} positions{taken}",
            do="Lower data.context.",
        )
