"""Tiny checkpoints that chat: random weights, a byte-level tokenizer with ChatML's two tokens, and its template.

What is no plain character, the two tokens too, has a score of 0, so that greedy replies are text which is read as it was
written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from torch import nn

from danlu.architecture.gpt2 import GPT2Config
from danlu.architecture.hub import save_hub
from danlu.architecture.llama import LlamaConfig
from danlu.contracts import ArchitectureConfig
from danlu.data.tokenizer import Tokenizer

START, END = "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BYTES = Tokenizer.train_bpe([], 257)
VOCABULARY = 259


def rotary() -> ArchitectureConfig:
    """Has no longest sequence."""
    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, initializer_range=0.6, tie_word_embeddings=True,
    )  # fmt: skip


def learned(longest: int = 96) -> ArchitectureConfig:
    """Has positions for so many tokens."""
    return GPT2Config(vocab_size=VOCABULARY, n_positions=longest, n_embd=16, n_layer=2, n_head=2, initializer_range=0.6)


def checkpoint(
    path: Path,
    config: ArchitectureConfig | None = None,
    *,
    template: str | None = CHATML,
    eos: str | None = END,
    bos: str | None = None,
) -> Path:
    """Written in hub format, so that transformers reads it too."""
    config = config or rotary()
    model = config.build()
    config.initialize(model, seed=3)
    plain = BYTES.encode("".join(map(chr, range(32, 127)))).tolist()
    (embedding,) = (m for m in model.modules() if isinstance(m, nn.Embedding) and m.num_embeddings == VOCABULARY)
    with torch.no_grad():
        embedding.weight[[i for i in range(VOCABULARY) if i not in plain]] = 0
    backend = Backend.from_str(BYTES.json.decode())
    backend.add_special_tokens([START, END])
    ids = {"bos_token_id": backend.token_to_id(bos or ""), "eos_token_id": backend.token_to_id(eos or "")}
    save_hub(model, path, settings={**ids, "pad_token_id": None})
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos}
    files = {"tokenizer.json": backend.to_str(), "tokenizer_config.json": json.dumps(settings)}
    for name, content in (files | ({} if template is None else {"chat_template.jinja": template})).items():
        (path / name).write_text(content, encoding="utf-8")
    return path


def write(path: Path, rows: Sequence[Any]) -> str:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)
