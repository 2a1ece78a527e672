"""Tiny models of every family, their weights spread wide enough that tokens differ."""

from __future__ import annotations

import torch

from danlu.architecture.gpt2 import GPT2Config
from danlu.architecture.llama import LlamaConfig, Qwen2Config, Qwen3Config
from danlu.contracts import ArchitectureConfig, SequenceModel

VOCABULARY = 61
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.4,
}
CONFIGS: dict[str, ArchitectureConfig] = {
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_positions=96, n_embd=32, n_layer=2, n_head=4, initializer_range=0.4),
    "llama": LlamaConfig(**_SHAPE, tie_word_embeddings=False),
    "qwen2": Qwen2Config(
        **_SHAPE, sliding_window=5, layer_types=("full_attention", "sliding_attention", "sliding_attention")
    ),
    "qwen3": Qwen3Config(**_SHAPE),
}
FAMILIES = tuple(CONFIGS)


def tiny(family: str) -> SequenceModel:
    """In double precision, so that results do not depend on the order of sums."""
    config = CONFIGS[family]
    model = config.build()
    config.initialize(model, seed=1)
    model.double().compute_dtype = torch.float64
    return model
