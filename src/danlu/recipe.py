"""Recipes: what a run is, in six nouns, validated before anything is built.

Every field is documented beside the class it configures; `danlu.reading` reads a recipe against those classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SerializeAsAny, model_validator

from danlu.adapter.contract import Adapter
from danlu.config import Config, Kind
from danlu.contracts import ArchitectureConfig, SequenceMethod
from danlu.data import DataConfig
from danlu.durations import Duration
from danlu.engine.guards.config import GuardConfig
from danlu.engine.optimizer import AdamW, OptimizerConfig
from danlu.engine.parallel import Mode
from danlu.engine.recompute import Recomputed
from danlu.hub_files import local_directory
from danlu.parts.quantized import Quantization
from danlu.registry import name_of


class HubModel(Config):
    """A checkpoint in the hub's format."""

    path: str
    """Its directory (config.json, safetensors, tokenizer files), or `hub:org/name`."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the checkpoint may run."""
    bridge: bool = False
    """Run the code of `transformers` even where the architecture is one of ours."""
    quantize: Quantization | None = None
    """Keep the matrices of its blocks in 8 bits a weight (`int8`) or 4 (`nf4`, `fp4`), frozen, under an adapter."""

    @property
    def directory(self) -> Path:
        """Where its files are; a model of the hub is fetched when it is not there yet."""
        return local_directory(self.path)


Named = SerializeAsAny[Annotated[ArchitectureConfig | HubModel, Kind("architecture")]]


class Roles(Config):
    """Models by what they are to a method."""

    policy: Named
    """What is trained: a checkpoint's path, or an architecture by name with its fields."""
    reference: Named | None = None
    """What it is compared with, where the method does that; null is the policy as it is at the start."""


class Running(Config):
    """How, where and how long it runs."""

    out: str | None = None
    """The run's directory, which must not exist; runs/NAME-TIME by default."""
    steps: int | None = Field(None, ge=1)
    """Updates, at most."""
    seed: int = Field(0, ge=0)
    """Everything random follows from it."""
    device: str = "auto"
    """auto, cpu, cuda, or another accelerator torch knows."""
    threads: int | None = Field(None, ge=1)
    """Processor threads of each process; by default all cores, shared between the processes of a machine."""
    eval_every: int | None = Field(None, ge=1)
    """Updates between measurements on held-out data; by default ten in a run."""
    checkpoint_every: int | None = Field(None, ge=1)
    """Updates between checkpoints; by default at each measurement."""
    keep_checkpoints: int = Field(2, ge=1)
    """The newest so many are kept, and the best."""
    max_time: Duration | None = None
    """How long a session may take ("90s", "30m", "2h", "1d", "1:30:00"): it ends in time, with a checkpoint that
    `danlu resume` goes on from."""
    guards: GuardConfig = Field(default_factory=GuardConfig)
    """What is watched while it runs."""
    loggers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where metrics go beside metrics.jsonl."""


class Reading(Running):
    """How, where and how long it learns from data that are there."""

    epochs: int | None = Field(None, ge=1)
    """Passes over the data, at most; the run ends at the bound it comes to first."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.steps is None and self.epochs is None:
            raise ValueError("a run is so many steps or so many epochs: set steps, epochs or both")
        return self


class RunConfig(Reading):
    """How, where and how long a model of sequences trains."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of activations and products; weights, gradients and the optimiser's averages stay float32."""
    compile: bool = False
    """Compile the blocks: faster steps after a start-up of about a minute; needs a C++ compiler on a CPU."""
    parallel: Mode = "auto"
    """What each of several processes (`torchrun`) keeps: `ddp` everything; `zero1` a share of the optimiser's averages,
    `zero2` of gradients too, `zero3` of weights too; `auto` is ddp where that has room, else zero3."""
    context_parallel: int = Field(1, ge=1)
    """So many processes share the rows of each pack (ring attention), which may be so many times as long: for sequences
    too long for one of them. 1 is none."""
    recompute: Recomputed = "none"
    """Activations that are made again in backward instead of kept: `selective` all but the dearest (matrix products,
    attention), `full` all of a block. Less memory for more time; changes no result."""
    pack_tokens: int = Field(4096, ge=1)
    """Tokens that go through at once on a process, at most: a matter of memory, which changes no result."""
    prompts: tuple[str, ...] = ()
    """Texts to be continued at each measurement."""
    prompt_tokens: int = Field(64, ge=1)
    """Tokens that each of them is continued by."""


class Recipe(Config):
    """A run."""

    model: SerializeAsAny[Annotated[ArchitectureConfig | HubModel | Roles, Kind("architecture")]]
    """A checkpoint's path, or an architecture by name with its fields; or both a policy and its reference."""
    method: SerializeAsAny[Annotated[SequenceMethod, Kind("method")]]
    """How it learns."""
    adapter: SerializeAsAny[Annotated[Adapter | None, Kind("adapter")]] = None
    """What is trained of it; null trains all of the model."""
    data: DataConfig
    """What it learns from."""
    optimizer: SerializeAsAny[Annotated[OptimizerConfig, Kind("optimizer")]] = Field(default_factory=AdamW)
    """How gradients move weights."""
    run: RunConfig
    """How, where and how long."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        run = self.run
        pairs = 2 if self.method.learns_from == "answers" else 1  # a prompt, its answers as long as the context each
        if run.pack_tokens * run.context_parallel < pairs * self.data.context:
            ranks = "" if run.context_parallel == 1 else f" on each of {run.context_parallel} ranks"
            raise ValueError(
                f"run.pack_tokens ({run.pack_tokens}{ranks}) is less than {'twice ' * (pairs > 1)}data.context "
                f"({self.data.context}): one sample would not fit"
            )
        if self.asked("reference") is not None and "reference" not in self.method.asks:
            name = name_of(type(self.method))
            raise ValueError(f"model.reference is given, and method {name} as it is set here asks for none")
        longest = self.policy.longest if isinstance(self.policy, ArchitectureConfig) else None
        if longest is not None and self.data.context > longest:
            raise ValueError(f"data.context ({self.data.context}) exceeds the model's {longest} positions")
        if self.adapter is not None and self.adapter.beside and isinstance(self.policy, ArchitectureConfig):
            raise ValueError("an adapter tunes a checkpoint: model must be the path of one")
        if isinstance(self.policy, HubModel) and self.policy.quantize is not None:
            if self.adapter is not None and not self.adapter.beside:
                raise ValueError("model.quantize keeps weights that stay, and this adapter trains them")
            if run.parallel.startswith("zero"):
                raise ValueError(f"run.parallel is {run.parallel}, which cannot share out a quantised base: use ddp")
        return self

    @property
    def policy(self) -> ArchitectureConfig | HubModel:
        """What is trained."""
        return self.model.policy if isinstance(self.model, Roles) else self.model

    def asked(self, role: str) -> ArchitectureConfig | HubModel | None:
        """The model that is named for another role; None is the policy as it is at the start."""
        return self.model.reference if isinstance(self.model, Roles) and role == "reference" else None

    def with_model(self, role: str, named: ArchitectureConfig | HubModel) -> Recipe:
        """The same with another model in a role."""
        if isinstance(self.model, Roles):
            return self.model_copy(update={"model": self.model.model_copy(update={role: named})})
        return self.model_copy(update={"model": named})

    @property
    def alone(self) -> Recipe:
        """The same for one process, on which packs that a ring would share are as large."""
        ring = self.run.context_parallel
        alone = {"context_parallel": 1, "pack_tokens": self.run.pack_tokens * ring}
        return self.model_copy(update={"run": self.run.model_copy(update=alone)})
