"""Tiny models of `transformers` with random weights: what the bridge is to carry, and what it is to refuse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from danlu.architecture.bridge import Bridged
from danlu.contracts import SequenceModel
from danlu.packed import ROOT, Packed, Targets
from danlu.parts.readout import Likelihood

VOCABULARY = 23
WINDOW = 3
"""Shorter than the sequences below."""

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_MIXED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 12}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "rope_theta": 100.0}
_LATENT = {"q_lora_rank": 6, "kv_lora_rank": 5, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 6}
_CAPPED = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}

CARRIED: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": {"head_dim": 8, "tie_word_embeddings": True},
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, "mlp_only_layers": [], **_EXPERTS},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 5, **_CAPPED, **_MIXED},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 5, **_MIXED},
    "mistral": {"sliding_window": WINDOW, "head_dim": 4},
    "phi3": {"sliding_window": WINDOW, "pad_token_id": 0},
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4, "rope_parameters": _YARN, **_EXPERTS, **_MIXED},
    "gpt_neox": {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}},
    "olmo2": {},
    "glm4": {"head_dim": 8, "pad_token_id": 0},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32},
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        **_LATENT,
        **_EXPERTS,
    },
    "granite": {"logits_scaling": 3.0, "attention_multiplier": 0.4, "residual_multiplier": 0.7},
    "cohere": {"logit_scale": 0.3},
    "opt": {"ffn_dim": 20, "word_embed_proj_dim": 12, "pad_token_id": 1},
}
"""Fields of each architecture. A model type that is to be carried adds its line here."""


def config(kind: str, **changes: Any) -> Any:
    """A tiny config."""
    fields = {**_COMMON, **CARRIED.get(kind, {}), **changes}
    if kind == "gpt2":
        fields = {name: value for name, value in fields.items() if name not in _COMMON or name.endswith("_id")}
        fields["vocab_size"] = VOCABULARY
    return transformers.AutoConfig.for_model(kind, **fields)


def build(kind: str, **changes: Any) -> Any:
    """A model with its own attention, every weight random: norms, biases and sinks too."""
    return randomized(transformers.AutoModelForCausalLM.from_config(config(kind, **changes)))


def randomized(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        around = 1.0 if parameter.dim() == 1 and "bias" not in name else 0.0
        with torch.no_grad():
            parameter.copy_(around + 0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@contextmanager
def eager(model: Any) -> Iterator[Any]:
    """The model within, with the attention that its own code defines."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield model
    finally:
        model.set_attn_implementation(before)


def forest() -> tuple[Packed, Targets]:
    """A prompt with two answers, a document of one token, two more; what each row predicts, with weights."""
    generator = torch.Generator().manual_seed(1)
    shape = ((5, ROOT), (4, 0), (6, 0), (1, ROOT), (12, ROOT), (7, ROOT))
    tokens = [torch.randint(2, VOCABULARY, (length,), generator=generator) for length, _ in shape]
    packed = Packed.tree(tokens, parents=[parent for _, parent in shape], samples=[1, 1, 1, 2, 3, 4])
    rows = torch.arange(len(packed))
    return packed, Targets(rows, (rows * 5 + 1) % VOCABULARY, torch.linspace(0.5, 2, len(rows)))


def together(model: SequenceModel, packed: Packed, wanted: Targets) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and every gradient of a pack, by parameter."""
    model.zero_grad()
    (sums,) = model(packed, [Likelihood(wanted)])
    sums.loss.backward()
    names = {name.removeprefix("inner."): p for name, p in model.named_parameters()}
    return sums.loss.detach(), {name: p.grad for name, p in names.items() if p.grad is not None}


def one_by_one(model: Any, packed: Packed, wanted: Targets) -> tuple[Tensor, dict[str, Tensor]]:
    """The same by the model's own forward, a path at a time; a target belongs to the first path that has its row."""
    model.zero_grad()
    taken, loss = torch.zeros(len(packed), dtype=torch.bool), torch.zeros(())
    with eager(model):
        for path, rows in packed.unroll():
            new = ~taken[rows]
            taken[rows] = True
            logits = model(input_ids=path.tokens[None], use_cache=False).logits[0]
            each = F.cross_entropy(logits, wanted.tokens[rows], reduction="none")
            mine = (each * wanted.weights[rows])[new].sum()
            mine.backward()
            loss += mine.detach()
    return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def worst_error(found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> float:
    """The largest error of the loss and of any gradient, relative to the gradient's largest entry."""
    assert found[1].keys() == expected[1].keys()
    errors = [float((found[0] - expected[0]).abs() / expected[0].abs())]
    largest = max(float(gradient.abs().max()) for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        scale = max(float(gradient.abs().max()), 1e-2 * largest)  # softmax knows no bias of keys: noise around 0
        errors.append(float((found[1][name] - gradient).abs().max()) / scale)
    return max(errors)


def bridged(kind: str, **changes: Any) -> Bridged:
    """A tiny model through the bridge."""
    return Bridged(build(kind, **changes))
