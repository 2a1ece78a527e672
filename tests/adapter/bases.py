"""Bases of adapters: tiny models and their checkpoints, ours and bridged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import tiny
from danlu.architecture.checkpoint import load_model, save_model
from danlu.contracts import SequenceModel
from danlu.packed import ROOT, Packed
from danlu.parts.readout import Logits
from strategies import VOCABULARY

BASES = ("gpt2", "llama", "qwen2", "qwen3", "bridged-gemma2", "bridged-gpt2")
"""Architectures of ours, and of `transformers` through the bridge."""
_THEIRS: dict[str, dict[str, Any]] = {
    "gemma2": {
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "query_pre_attn_scalar": 4,
        "sliding_window": 3,
        "max_position_embeddings": 64,
    },
    "gpt2": {"n_positions": 48, "n_embd": 8, "n_layer": 2, "n_head": 2},
}


def checkpoint(base: str, directory: Path) -> Path:
    """A tiny checkpoint with every weight random."""
    kind = base.removeprefix("bridged-")
    if base == kind:
        windowless = (
            {"sliding_window": None, "layer_types": None} if kind == "llama" else {}
        )  # as `transformers` has it
        made = tiny.model(kind, dtype=torch.float32, seed=7, **windowless)
        save_model(made, directory)
        return directory
    torch.manual_seed(7)
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=VOCABULARY, bos_token_id=None, eos_token_id=None, **_THEIRS[kind]
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(directory)
    return directory


def base(name: str, directory: Path) -> SequenceModel:
    """The model of that checkpoint."""
    return load_model(checkpoint(name, directory), bridge=name.startswith("bridged-")).eval()


def pack() -> Packed:
    """A prompt with two answers, and two documents."""
    generator = torch.Generator().manual_seed(3)
    lengths = (4, 3, 5, 7, 1)
    pieces = [torch.randint(VOCABULARY, (n,), generator=generator) for n in lengths]
    return Packed.tree(pieces, parents=[ROOT, 0, 0, ROOT, ROOT], samples=[5, 5, 5, 6, 7])


def logits(model: SequenceModel, packed: Packed) -> torch.Tensor:
    """Of every row, without a gradient."""
    with torch.no_grad():
        (answer,) = model(packed, [Logits(torch.arange(len(packed)))])
    assert isinstance(answer, torch.Tensor)
    return answer


def stirred(model: SequenceModel, seed: int = 1) -> None:
    """Move whatever is trained away from where it starts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def alone(compute: Callable[[Packed], torch.Tensor], packed: Packed) -> torch.Tensor:
    """What a function of one path gives, path by path, put where its rows are."""
    found = [(rows, compute(path)) for path, rows in packed.unroll()]
    out = found[0][1].new_zeros(len(packed), *found[0][1].shape[1:])
    for rows, answer in found:
        out[rows] = answer
    return out


def peft_logits(model: Any, packed: Packed) -> torch.Tensor:
    """Of each path by a model of `peft`, the rows that it puts in front left out."""

    def compute(path: Packed) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = model(input_ids=path.tokens[None]).logits[0]
        return logits[-len(path) :]

    return alone(compute, packed)
