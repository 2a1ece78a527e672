"""Everything a recipe names, made and checked: an experiment that is ready to run."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from danlu.adapter.adapted import Adapters
from danlu.adapter.hub import save_adapter
from danlu.architecture.checkpoint import save_model
from danlu.contracts import SequenceModel, Source
from danlu.data import Data, DataSource
from danlu.data.chat_template import ChatTemplate
from danlu.engine.checkpoint import Checkpoints
from danlu.engine.device import Device
from danlu.engine.loop import Loop
from danlu.engine.parallel import Parallel
from danlu.engine.ranks import Ranks
from danlu.engine.recalled import RecallingSource, recollect
from danlu.engine.record import Recorder
from danlu.engine.update import Updater
from danlu.generate import Sampling, complete, generate
from danlu.generate.chat_session import chat_ids, turn_ending
from danlu.hub_files import ending_tokens
from danlu.pretrained import named_base, with_base
from danlu.reading import dump_recipe
from danlu.recipe import HubModel, Recipe
from danlu.turning import loop_over, planned
from danlu.units import duration

_UNRENDERED = {"text", "tokens", "preference/text"}
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
        base: the fingerprint of the weights that an adapter stands on; None where there is none.
        asked: the models that are only asked, by role; where one was asked beforehand about all data, it is let go of.
        starts: for each role that is asked, the fingerprint of the weights it is had from.
    """

    recipe: Recipe
    device: Device
    data: Data
    source: DataSource
    policy: SequenceModel
    parallel: Parallel
    began: float
    base: int | None = None
    asked: dict[str, SequenceModel] = field(default_factory=dict)
    starts: Mapping[str, int | None] = field(default_factory=dict)

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
        source, held_out = self._recalling(recorder)
        return loop_over(
            self.updater(),
            source,
            checkpoints=Checkpoints(run / "checkpoints", self.ranks),
            settings=settings,
            guards=settings.guards,
            plan=planned(settings, self.steps, recipe.optimizer.lr),
            schedule=recipe.optimizer.schedule,
            device=self.device,
            began=self.began,
            steps=self.steps,
            recorder=recorder,
            identity={"recipe": dump_recipe(recipe), "base": self.base, "asked": dict(self.starts)},
            held_out=held_out,
            shown=lambda _: (("sample", {"prompt": p, "text": t}) for p, t in self.continuations()),
            stopping=stopping,
        )

    def updater(self) -> Updater:
        """What moves the weights."""
        recipe = self.recipe
        return Updater(
            models={recipe.method.roles[0]: self.policy, **self.asked},
            method=recipe.method,
            optimizer=recipe.optimizer.build(self.policy),
            device=self.device.torch,
            pack_tokens=recipe.run.pack_tokens * self.parallel.ring,
            clip_norm=recipe.optimizer.clip_norm,
            seed=recipe.run.seed,
            parallel=self.parallel,
        )

    def _recalling(self, recorder: Recorder) -> tuple[Source, Callable[[], Iterator[Any]] | None]:
        """What is drawn and measured; of a reference that is precomputed, with what it says, and it is let go of.

        It is to be asked for while the policy is as it is at the start.
        """
        held_out = None if self.data.held_out is None else self.held_out
        role, ways = "reference", self.recipe.method.asks
        if ways.get(role) != "precomputed":
            return self.source, held_out
        begun, data = time.perf_counter(), self.recipe.data
        self.policy.eval()
        updater = self.updater()
        updater = replace(updater, models={role: self.policy, **updater.models})
        known = recollect(updater, self.data, data, weights=self.starts[role], precision=self.recipe.run.precision)
        self.parallel.settle(self.policy)
        self.asked.pop(role, None)
        way = "were kept in the data's cache" if known.kept else f"took {duration(time.perf_counter() - begun)}"
        recorder.event("note", message=f"the reference's log-probabilities of {len(known.train.ids):,} samples {way}")
        measured = known.held_out
        apart = None if measured is None else lambda: map(measured.sample, self.held_out())
        return RecallingSource(self.source, known.train), apart

    def held_out(self) -> Iterator[Any]:
        """The samples it is measured on."""
        corpus = self.data.held_out
        assert corpus is not None
        return (corpus[i] for i in range(len(corpus)))

    def continuations(self) -> Iterable[tuple[str, str]]:
        """The recipe's prompts, and what the model makes of them now."""
        tokenizer = self.data.tokenizer
        written = complete(self.policy, *self._prompts(), stop=self._stops, agree=self.ranks.first)
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

    def export(self, directory: Path, writing: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        """Write the model and its tokenizer in hub format; all ranks help, the first one writes.

        Args:
            directory: where.
            writing: what the first one writes within, and may make of a fault what all are to hear.
        """
        self.ranks.wait()  # where a fault of one is told, before they rely on each other
        weights = self.parallel.gathered(self.policy)

        def write() -> None:
            with writing():
                self._write(directory, weights)

        self.ranks.lead(write)

    def _write(self, directory: Path, weights: Mapping[str, Tensor] | None) -> None:
        model, tokenizer = self.recipe.policy, self.data.tokenizer
        ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
        adapted = self.policy.adapted
        if isinstance(adapted, Adapters) and isinstance(model, HubModel) and adapted.only.adapter.beside:
            base = named_base(model.path)
            task = "SEQ_CLS" if self.policy.config.scores else "CAUSAL_LM"
            save_adapter(adapted.only, directory, base=base, fingerprint=self.base, weights=weights, task=task)
        else:
            like, settings = (model.directory, {}) if isinstance(model, HubModel) else (None, ids)
            settings = settings | self._padding()
            save_model(self.policy, directory, weights=weights, like=like, settings=settings)
        tokenizer.save(directory)
        self._export_template(directory)

    def _padding(self) -> dict[str, Any]:
        """What tells `transformers` where a padded sequence ends that is scored at its end, where something can.

        It is none of the tokens that answers end with: else a score would be read one token early.
        """
        if not self.policy.config.scores:
            return {}
        pad = self.data.tokenizer.pad_id
        return {"pad_token_id": None if pad in self._stops else pad}

    def _export_template(self, directory: Path) -> None:
        """The template that it was trained with, where that is not the tokenizer's own, and what ends a turn by it."""
        template = self._template
        if template is None:
            return
        if self.recipe.data.chat_template is not None:
            (directory / "chat_template.jinja").write_text(template.source, encoding="utf-8")
        file = directory / "generation_config.json"
        settings = json.loads(file.read_text()) if file.exists() else {}
        model = self.recipe.policy
        known = ending_tokens([directory, *(with_base(model.directory) if isinstance(model, HubModel) else ())])
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
