"""The smallest model of every exported architecture: where a test is for all of them, it is for these."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from danlu.contracts import ArchitectureConfig, SequenceModel
from danlu.parts.linear import Dropout
from danlu.random import place_key
from danlu.registry import exported, lookup
from strategies import VOCABULARY

_DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "attention_dropout": 0.3,
    "hidden_dropout": 0.2,
    "sliding_window": 3,
    "layer_types": ("full_attention", "sliding_attention"),
}
_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_positions": 48,
    "n_embd": 8,
    "n_layer": 2,
    "n_head": 2,
    "embd_pdrop": 0.2,
    "attn_pdrop": 0.3,
    "resid_pdrop": 0.2,
}
FIELDS: dict[str, dict[str, Any]] = {
    "gpt2": _GPT2,
    "llama": {**_DECODER, "tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
    "qwen2": {**_DECODER, "tie_word_embeddings": True},
    "qwen3": {**_DECODER, "tie_word_embeddings": False},
}
"""Fields of each architecture: a few rows wide, every option on. A new architecture adds its line here."""

ARCHITECTURES = [entry.name for entry in exported("architecture")]


def config(name: str, **changes: Any) -> ArchitectureConfig:
    """The tiny config of an architecture."""
    assert name in FIELDS, f"'{name}' is exported; give it a tiny config in tests/tiny.py"
    made: ArchitectureConfig = lookup("architecture", name)(**{**FIELDS[name], **changes})
    return made


def model(name: str, *, dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any) -> SequenceModel:
    """A tiny model with every weight random, places of dropout told apart."""
    made = config(name, **changes).build()
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in made.named_parameters():
        around = 1.0 if parameter.dim() == 1 and not key.endswith("bias") else 0.0
        nn.init.normal_(parameter, around, 0.4, generator=generator)
    for key, module in made.named_modules():
        if isinstance(module, Dropout):
            module.place.fill_(place_key(key))
    made.compute_dtype = dtype
    return made.to(dtype)


def embedding(made: SequenceModel) -> nn.Embedding:
    """The embedding of tokens."""
    return next(m for m in made.modules() if isinstance(m, nn.Embedding) and m.num_embeddings == VOCABULARY)
