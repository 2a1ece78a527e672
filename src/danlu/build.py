"""From a recipe to objects: the one place that knows concrete classes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import psutil
import torch

from danlu.adapter.hub import is_adapter
from danlu.adapter.quantizing import quantized_kind
from danlu.architecture.hub import model_directory
from danlu.architecture.scorer import as_scorer
from danlu.beside import bytes_of, mark_of, models_beside, read_model
from danlu.contracts import ArchitectureConfig, SequenceModel
from danlu.data import Data, DataConfig, DataSource, Tokenizer, build_data
from danlu.engine.device import Device
from danlu.engine.guards.weights import fingerprints, trainable
from danlu.engine.guards.words import listed
from danlu.engine.launch import launch_began
from danlu.engine.parallel import choose
from danlu.engine.ranks import ALONE, Ranks
from danlu.engine.recompute import recompute
from danlu.errors import DataError, RecipeError, RunError, UnsupportedError
from danlu.experiment import Experiment
from danlu.fingerprint import total
from danlu.parts.norm import LayerNorm, RMSNorm
from danlu.parts.quantized import require
from danlu.pretrained import Pretrained
from danlu.random import place_key
from danlu.reading import dump_recipe
from danlu.recipe import HubModel, Recipe
from danlu.registry import name_of

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
        data = build_data(
            _own(recipe.data, ranks), recipe.run.seed, model_tokenizer(recipe), learns_from=recipe.method.learns_from
        )
    with _closed_on_fault(data):
        source = data.source(recipe.data, seed=recipe.run.seed, epochs=recipe.run.epochs)
        with ranks.together():
            source.exhausted  # noqa: B018 - reads what comes first, whose faults are told before anything is written
            recipe = _resolved(recipe, data)
            roomy = _fits_whole(recipe, ranks)
        with nullcontext() if all(ranks.gather(roomy)) else ranks.in_turn():
            read = _policy(recipe, device)
            policy, base = read.model, read.base
            if recipe.adapter is not None:
                recipe.adapter.encoded(data.tokenizer.encode).attach(policy, seed=recipe.run.seed)
            _check_fit(recipe, policy, data)
            trainable(policy)
            asked = models_beside(recipe, policy)
            alike = _start(recipe, source, base, {"weights": policy, **asked}) if ranks.size > 1 else {}
            starts = {role: mark_of(asked.get(role, policy), base) for role in recipe.method.asks}
            recompute(policy, recipe.run.recompute)
            run = recipe.run
            mode = "ddp" if run.parallel == "auto" and quantized_kind(policy) else run.parallel
            parallel = choose(mode, ranks, policy, device.memory_bytes, ring=run.context_parallel)
            for model in (policy, *asked.values()):
                arm(model, precision, compiled=run.compile)
            parallel.lay_out(policy, device.torch)
            for model in asked.values():
                parallel.lay_out_frozen(model, device.torch)
        _require_alike(ranks, alike)
        experiment = Experiment(recipe, device, data, source, policy, parallel, began, base, asked, starts)
        experiment.check_prompts()
    return experiment


def _start(recipe: Recipe, source: DataSource, base: int | None, models: Mapping[str, SequenceModel]) -> dict[str, Any]:
    """What is the same on every rank where a run is one run."""
    weights = {name: total(fingerprints(model.parameters())) for name, model in models.items()}
    return {"recipes": dump_recipe(recipe), "data": source.state_dict(), "files of the base": base, **weights}


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
    """The recipe with what it left open: the vocabulary is the tokenizer's; a head that scores is made, and trained."""
    if recipe.method.scoring and recipe.adapter is not None and "score" not in recipe.adapter.also_train:
        also = (*recipe.adapter.also_train, "score")
        recipe = recipe.model_copy(update={"adapter": recipe.adapter.model_copy(update={"also_train": also})})
    for role in ("policy", *recipe.method.asks):
        named = recipe.policy if role == "policy" else recipe.asked(role)
        if not isinstance(named, ArchitectureConfig):
            continue
        left_open: dict[str, Any] = {}
        if getattr(named, "vocab_size", 0) is None:
            left_open["vocab_size"] = data.tokenizer.vocab_size
        if role == "policy" and recipe.method.scoring and not named.scores:
            left_open["num_labels"] = 1
        if left_open:
            recipe = recipe.with_model(role, named.model_copy(update=left_open))
    return recipe


def _policy(recipe: Recipe, device: Device) -> Pretrained:
    """What is trained, with the head that its method needs; the adapter that it is to be given is not in it yet.

    Raises:
        RecipeError: when it is an adapter that another is to be put on, a quantised base that would be trained itself,
            or has no head over tokens where one is needed.
    """
    named = recipe.policy
    if isinstance(named, HubModel):
        adapted = is_adapter(named.directory)
        if recipe.adapter is not None and adapted:
            what = "the model is an adapter itself, which is trained on as it is"
            raise RecipeError(what, where="adapter", do="Leave adapter out, or merge it first: danlu export --merge.")
        if named.quantize is not None and recipe.adapter is None and not adapted:
            what = "a quantised base cannot be trained itself"
            raise RecipeError(what, where="model.quantize", do="Set adapter=lora, or leave model.quantize out.")
        if named.quantize is not None:
            require(named.quantize, device.torch)
    read = read_model(named, recipe.run.seed, fingerprinted=recipe.adapter is not None)
    policy = read.model
    if recipe.method.scoring:
        if policy.adapted is not None and not policy.config.scores:
            what = "the model is an adapter of a language model, which has no head that scores"
            raise RecipeError(what, where="model", do="Merge it first: danlu export --merge.")
        return Pretrained(as_scorer(policy, recipe.run.seed), read.base)
    if policy.config.scores:
        what = f"the model scores sequences, and {name_of(type(recipe.method))} learns to predict tokens"
        raise RecipeError(what, where="model", do="Give a language model, or set method=reward.")
    return read


@contextmanager
def _closed_on_fault(data: Data) -> Iterator[None]:
    try:
        yield
    except BaseException:
        data.train.close()
        raise


def model_tokenizer(recipe: Recipe) -> Tokenizer | None:
    """The tokenizer of the checkpoint that a recipe starts from, unless it names another."""
    if isinstance(recipe.policy, HubModel) and recipe.data.tokenizer is None:
        return Tokenizer.load(model_directory(recipe.policy.directory))
    return None


def _fits_whole(recipe: Recipe, ranks: Ranks) -> bool:
    """Whether every rank of a machine may have whole models on the host at once, which is quicker than in turn."""
    if ranks.local_size == 1:
        return True
    held = sum(map(bytes_of, (recipe.policy, *(recipe.asked(role) or recipe.policy for role in recipe.method.asks))))
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
