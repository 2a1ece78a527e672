"""From a recipe to objects: the one place that knows concrete classes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from danlu.architecture.checkpoint import load_model, save_model
from danlu.architecture.hub import model_directory
from danlu.contracts import ArchitectureConfig, SequenceModel
from danlu.data import Data, DataConfig, DataSource, Tokenizer, build_data
from danlu.data.chat_template import ChatTemplate
from danlu.engine.checkpoint import Checkpoints
from danlu.engine.device import Device
from danlu.engine.guarding import Guards
from danlu.engine.guards.clock import Clock
from danlu.engine.guards.repeats import Repeats
from danlu.engine.guards.weights import trainable
from danlu.engine.loop import Loop, Plan
from danlu.engine.parallel import Parallel, choose
from danlu.engine.ranks import ALONE, Ranks, launch_began
from danlu.engine.recompute import recompute
from danlu.engine.record import Recorder
from danlu.engine.update import Updater
from danlu.errors import DataError, RecipeError, UnsupportedError
from danlu.generate import Sampling, complete, generate
from danlu.generate.chat_session import chat_ids, turn_ending
from danlu.parts.norm import LayerNorm, RMSNorm
from danlu.random import place_key
from danlu.recipe import HubModel, Recipe, dump_recipe

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
_MEASUREMENTS = 10
_ROOMY = 0.5
"""The share of the free host memory that the models of all ranks may take at once."""
_UNRENDERED = {"text", "tokens"}
"""Shapes of rows that no template renders."""


@dataclass(frozen=True)
class Experiment:
    """Everything a recipe names, made and checked; nothing has been trained or written.

    Attributes:
        recipe: resolved: what it left open is filled in.
        device: where.
        data: what it learns from.
        source: what samples are drawn from.
        policy: the model that is trained.
        parallel: how it lies over ranks.
        began: when it was begun to be made, or its launch by `torchrun` was, by `time.monotonic`.
    """

    recipe: Recipe
    device: Device
    data: Data
    source: DataSource
    policy: SequenceModel
    parallel: Parallel
    began: float

    @property
    def ranks(self) -> Ranks:
        """The processes of the run."""
        return self.parallel.ranks

    @property
    def steps(self) -> int:
        """Updates of the run; about so many, where it is so many epochs: what has been read tells of the rest."""
        run, data, (samples, targets) = self.recipe.run, self.recipe.data, self.data.train.expected
        if run.epochs is None:
            return run.steps or 0
        step, whole = (data.step_samples, samples) if data.step_samples else (data.step_tokens or 1, targets)
        epochs = max(1, math.ceil(run.epochs * whole / step))
        return epochs if run.steps is None else min(run.steps, epochs)

    @property
    def notes(self) -> tuple[str, ...]:
        """What one should know of the model: what of a checkpoint's own settings is not done here."""
        return self.policy.notes

    def close(self) -> None:
        """End what works in the background."""
        self.data.train.close()

    def loop(self, run: Path, recorder: Recorder, stopping: Callable[[], str | None]) -> Loop:
        """The loop over these parts, writing into a run's directory."""
        recipe, settings = self.recipe, self.recipe.run
        every = settings.eval_every or max(1, self.steps // _MEASUREMENTS)
        updater = self.updater()
        guards = Guards(
            settings.guards,
            updater,
            Clock(settings.max_time, self.steps or None, began=self.began),
            Repeats(settings.epochs, steps=settings.steps, epochs=self.source.epochs),
            lambda message, step: recorder.event("warning", step=step, message=message),
        )
        return Loop(
            updater=updater,
            source=self.source,
            held_out=None if self.data.held_out is None else self.held_out,
            schedule=recipe.optimizer.schedule,
            device=self.device,
            plan=Plan(
                steps=settings.steps,
                epochs=settings.epochs,
                eval_every=every,
                checkpoint_every=settings.checkpoint_every or every,
                keep_checkpoints=settings.keep_checkpoints,
                lr=recipe.optimizer.lr,
            ),
            checkpoints=Checkpoints(run / "checkpoints", self.ranks),
            recorder=recorder,
            guards=guards,
            continuations=self.continuations,
            stopping=stopping,
            identity={"recipe": dump_recipe(recipe)},
        )

    def updater(self) -> Updater:
        """What moves the weights."""
        recipe = self.recipe
        return Updater(
            models={recipe.method.roles[0]: self.policy},
            method=recipe.method,
            optimizer=recipe.optimizer.build(self.policy),
            device=self.device.torch,
            pack_tokens=recipe.run.pack_tokens * self.parallel.ring,
            clip_norm=recipe.optimizer.clip_norm,
            seed=recipe.run.seed,
            parallel=self.parallel,
        )

    def held_out(self) -> Iterator[Any]:
        """The samples it is measured on."""
        corpus = self.data.held_out
        assert corpus is not None
        return (corpus[i] for i in range(len(corpus)))

    def continuations(self) -> Iterable[tuple[str, str]]:
        """The recipe's prompts, and what the model makes of them now."""
        tokenizer = self.data.tokenizer
        written = complete(self.policy, *self._prompts(), stop=self._stops)
        self.parallel.settle(self.policy)
        return [(p, tokenizer.decode(e.tokens)) for p, e in zip(self.recipe.run.prompts, written, strict=True)]

    def check_prompts(self) -> None:
        """Refuse, before anything runs, prompts that could not be continued, and a template that ends no turn.

        Raises:
            RecipeError, UnsupportedError: as `danlu.generate.generate` does.
        """
        generate(self.policy, *self._prompts(), stop=self._stops)

    def _prompts(self) -> tuple[list[list[int]], Sampling]:
        """The prompts as what the model is trained on: where that is conversations, as a user's messages."""
        run, tokenizer, template = self.recipe.run, self.data.tokenizer, self._template
        if template is not None:
            said = [[{"role": "user", "content": prompt}] for prompt in run.prompts]
            prompts = [chat_ids(tokenizer, template.render(asked, add_generation_prompt=True)) for asked in said]
        else:
            first = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
            prompts = [[*first, *tokenizer.encode(prompt).tolist()] for prompt in run.prompts]
        return prompts, Sampling(max_new_tokens=run.prompt_tokens, seed=run.seed)

    def export(self, directory: Path) -> None:
        """Write the model and its tokenizer in hub format; all ranks help, the first one writes."""
        self.ranks.wait()  # where a fault of one is told, before they rely on each other
        weights = self.parallel.gathered(self.policy)
        self.ranks.lead(lambda: self._write(directory, weights))

    def _write(self, directory: Path, weights: Mapping[str, Tensor] | None) -> None:
        model, tokenizer = self.recipe.model, self.data.tokenizer
        ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
        like, settings = (model.directory, {}) if isinstance(model, HubModel) else (None, ids)
        save_model(self.policy, directory, weights=weights, like=like, settings=settings)
        tokenizer.save(directory)
        self._export_template(directory)

    def _export_template(self, directory: Path) -> None:
        """The template that it was trained with, where that is not the tokenizer's own, and what ends a turn by it."""
        template = self._template
        if template is None:
            return
        if self.recipe.data.chat_template is not None:
            (directory / "chat_template.jinja").write_text(template.source, encoding="utf-8")
        file = directory / "generation_config.json"
        settings = json.loads(file.read_text()) if file.exists() else {}
        listed = settings.get("eos_token_id", json.loads((directory / "config.json").read_text()).get("eos_token_id"))
        known = listed if isinstance(listed, list) else [] if listed is None else [listed]
        ends = list(dict.fromkeys([*known, *self._stops]))
        if ends != known:  # else other tools would not stop where the model was taught to
            file.write_text(json.dumps({**settings, "eos_token_id": ends}, indent=2) + "\n")

    @property
    def _template(self) -> ChatTemplate | None:
        """What conversations are rendered by, if there are any."""
        if set(self.data.train.statistics.shapes) <= _UNRENDERED:
            return None
        chats = [part.encoder.chat for part in self.data.documents.train]
        return next((chat.template for chat in chats if chat is not None and chat.template is not None), None)

    @property
    def _stops(self) -> list[int]:
        """What ends a text, and an assistant's turn."""
        tokenizer, template = self.data.tokenizer, self._template
        ending = None if template is None else tokenizer.added_tokens.get(turn_ending(tokenizer, template))
        return [token for token in dict.fromkeys((tokenizer.eos_id, ending)) if token is not None]


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
            _check_fit(recipe, policy.config, data)
            trainable(policy)
            recompute(policy, recipe.run.recompute)
            arm(policy, precision, compiled=recipe.run.compile)
            run = recipe.run
            parallel = choose(run.parallel, ranks, policy, device.memory_bytes, ring=run.context_parallel)
            parallel.lay_out(policy, device.torch)
        experiment = Experiment(recipe, device, data, source, policy, parallel, began)
        experiment.check_prompts()
    return experiment


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
        return load_model(recipe.model.directory, **recipe.model.model_dump(exclude={"path"}))
    policy = recipe.model.build()
    recipe.model.initialize(policy, recipe.run.seed)
    return policy


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


def _check_fit(recipe: Recipe, config: ArchitectureConfig, data: Data) -> None:
    """Data, model and run go together.

    Raises:
        DataError: when a token has no embedding.
        RecipeError: when a sample is longer than the model's positions.
    """
    try:
        data.train.bound_tokens(config.vocabulary)
    except DataError as fault:
        raise DataError(fault.what, where=recipe.data.tokenizer or "data.tokenizer", do=fault.do) from None
    if data.held_out is not None and data.held_out.max_token >= config.vocabulary:
        raise DataError(
            f"the data hold token {data.held_out.max_token}, and the model's last is {config.vocabulary - 1}",
            where=recipe.data.tokenizer or "data.tokenizer",
            do="Use the model's own tokenizer, or raise model.vocab_size.",
        )
    if config.longest is not None and recipe.data.context > config.longest:
        raise RecipeError(
            f"data.context ({recipe.data.context}) exceeds the model's {config.longest} positions",
            do="Lower data.context.",
        )
