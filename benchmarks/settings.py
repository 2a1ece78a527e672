"""What is measured: the model, the data, the update, the targets, in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHAPE: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 16384,
    "tie_word_embeddings": True,
}
"""A Qwen3 of 32 million parameters."""
TINY_SHAPE: dict[str, Any] = SHAPE | {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 1024,
}
"""For `--quick`, which only shows that a benchmark runs."""

SEED = 0
CONTEXT = 1024
PACK_TOKENS = 4096
STEP_SAMPLES = 16
LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY, CLIP_NORM = 3e-4, (0.9, 0.95), 1e-8, 0.1, 1.0

SHARED = Path("../shared/data")
"""Beside the project's root, from which the benchmarks are run."""
GSM8K = SHARED / "gsm8k_train.jsonl"
SHAKESPEARE = SHARED / "tinyshakespeare.txt"
GSM8K_TEXT = "{question}\n{answer}"


@dataclass(frozen=True)
class Lengths:
    """Log-normal lengths of documents of random tokens."""

    median: float = 150.0
    sigma: float = 1.0
    shortest: int = 16
    longest: int = 1024


LENGTHS = Lengths()


@dataclass(frozen=True)
class Target:
    """A bound on a figure: at least, or at most."""

    least: float | None = None
    most: float | None = None

    def met(self, value: float) -> bool:
        """Whether a figure keeps it."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        return f"≥ {self.least:g}" if self.least is not None else f"≤ {self.most:g}"


SPEED_UP = {"gsm8k": Target(least=2.0), "log-normal": Target(least=4.0)}
"""Real tokens a second over the Trainer's."""
MEMORY = Target(most=0.6)
"""Peak memory over the Trainer's."""
SAME_LOSS = 1e-3
"""How far the two sides' losses at the first step may be apart; further, and they do not compute the same."""
MFU = {"fp32": Target(least=0.80), "bf16": Target(least=0.60)}
DATA_SPEED_UP = Target(least=1.2)
SFT_SPEED_UP = {
    ("danlu, compiled", "SFTTrainer, packing"): Target(least=2.5),
    ("danlu, compiled", "SFTTrainer, padded"): Target(least=3.0),
    ("danlu, bridge", "SFTTrainer, packing"): Target(least=2.0),
}
"""Real tokens a second of one side over another's."""
LORA_SPEED_UP = Target(least=3.0)
"""Real tokens a second of a LoRA over those of `trl` with `peft`, packing."""
LORA_BOUND = Target(least=0.9)
"""How near a LoRA comes to what its matrix products allow, beside training all weights."""
ADAPTER_SWITCHING = Target(most=1.1)
"""How much longer a pass takes where its sequences go through several adapters, over one adapter for all."""
DPO_SPEED_UP = Target(least=3.0)
"""Pairs a second over those of `trl`."""
DPO_MEMORY = Target(most=0.5)
"""Peak memory over that of `trl`."""
ACTING_SPEED_UP = {
    "ppo": Target(least=2.0),
    "a2c": Target(least=2.0),
    "trpo": Target(least=2.0),
    "ddpg": Target(least=1.3),
}
"""Environment steps a second over those of stable-baselines3 (TRPO: sb3-contrib)."""
DENSITY_SPEED_UP = {"overhead": Target(least=1.5), "products": Target(least=1.0)}
"""Rows a second, learned from and made, over those of other libraries, by what an update's time is bound by."""
DENSITY_MEMORY = Target(most=1.0)
"""What learning a density adds to a process's memory, over what it adds to another library's."""
GUARDS = Target(most=0.01)
"""What guards may add to an update, as a share of it."""
FIRST_STEP_SECONDS = Target(most=20.0)
STARTUP_SECONDS = Target(most=0.3)
CHECKPOINT_STALL = Target(most=5.0)
"""How long a run waits for a checkpoint, in percent of an update."""


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    quick: bool = False
    everything: bool = False
    profile: bool = False
    device: str = "cpu"
    threads: int = 1
    precisions: Sequence[str] = ("fp32", "bf16")
    repeats: int | None = None
    steps: int | None = None

    def rounds(self, usual: int) -> int:
        """How often each side is measured."""
        return self.repeats or (1 if self.quick else usual)

    def updates(self, usual: int) -> int:
        """How many updates one measurement takes, after those that warm up."""
        return self.steps or (2 if self.quick else usual)

    @property
    def shape(self) -> dict[str, Any]:
        """The model's."""
        return TINY_SHAPE if self.quick else SHAPE
