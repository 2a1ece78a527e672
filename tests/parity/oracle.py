"""`transformers` as an oracle: tiny models of it with random weights, and what they compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.contracts import SequenceModel
from danlu.packed import Packed, Targets
from danlu.parts.readout import Likelihood, Logits

VOCABULARY = 23
LENGTHS = (9, 1, 12)
"""Of the sequences that are compared; beyond every window and the original context of every rotary scaling below."""

_ROPE = {"original_max_position_embeddings": 8, "rope_theta": 100.0}
_LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **_ROPE}
_DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
}
_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_positions": 32,
    "n_embd": 12,
    "n_layer": 2,
    "n_head": 3,
    "bos_token_id": None,
    "eos_token_id": None,
}
_SLIDING = {"num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}
_DROP = ("embd_pdrop", "attn_pdrop", "resid_pdrop")


@dataclass(frozen=True)
class Case:
    """One configuration of one family."""

    family: str
    fields: dict[str, Any]

    def config(self) -> Any:
        """As `transformers` has it."""
        base = _GPT2 if self.family == "gpt2" else _DECODER
        return transformers.AutoConfig.for_model(self.family, **{**base, **self.fields})


CASES = {
    "gpt2": Case("gpt2", {}),
    "gpt2-inner": Case("gpt2", {"n_inner": 20, "layer_norm_epsilon": 1e-3, **dict.fromkeys(_DROP, 0.3)}),
    "llama": Case("llama", {}),
    "llama-tied": Case("llama", {"tie_word_embeddings": True}),
    "llama-biases": Case("llama", {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-2}),
    "llama-wide-heads": Case("llama", {"head_dim": 6, "num_key_value_heads": 4}),
    "llama-linear": Case("llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 100.0}}),
    "llama-llama3": Case("llama", {"rope_parameters": _LLAMA3}),
    "llama-yarn": Case("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, **_ROPE}}),
    "qwen2": Case("qwen2", {}),
    "qwen2-tied": Case("qwen2", {"tie_word_embeddings": True}),
    "qwen2-sliding": Case("qwen2", _SLIDING),
    "qwen2-unused-window": Case("qwen2", {"sliding_window": 3, "use_sliding_window": False}),
    "qwen3": Case("qwen3", {"head_dim": 8}),
    "qwen3-tied-biases": Case("qwen3", {"head_dim": 4, "tie_word_embeddings": True, "attention_bias": True}),
    "qwen3-sliding": Case("qwen3", {"head_dim": 8, **_SLIDING}),
    "qwen3-yarn": Case("qwen3", {"head_dim": 8, "rope_parameters": {"rope_type": "yarn", "factor": 4.0, **_ROPE}}),
}


def oracle(case: Case) -> Any:
    """A model of `transformers` with every weight random, norms and biases too."""
    model = transformers.AutoModelForCausalLM.from_config(case.config(), attn_implementation="sdpa").eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        around = 1.0 if parameter.dim() == 1 and not name.endswith("bias") else 0.0
        with torch.no_grad():
            parameter.copy_(around + 0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def precise(model: Any) -> Any:
    """The oracle in float64; its norms, which cast to float32 on their own, as the equation says."""
    model = model.double()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = lambda x, m=module: F.rms_norm(x, m.weight.shape, m.weight, m.variance_epsilon)
    return model


def sequences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCABULARY, (length,), generator=generator) for length in LENGTHS]


def theirs(model: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Each sequence's logits, one at a time; and the gradients of the summed next-token loss, by name."""
    model.zero_grad()
    logits = []
    for tokens in sequences():
        out = model(input_ids=tokens[None], use_cache=False).logits[0]
        F.cross_entropy(out[:-1], tokens[1:], reduction="sum").backward()
        logits.append(out.detach())
    return logits, {name: p.grad for name, p in model.named_parameters()}


def ours(model: SequenceModel) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The same from one pack, under their names."""
    model.zero_grad()
    model.compute_dtype = next(model.parameters()).dtype
    pack = Packed.join([Packed.tree([tokens]) for tokens in sequences()])
    starts = [pack.bounds[n] for n in range(len(LENGTHS))]
    rows = torch.cat([torch.arange(start, start + length - 1) for start, length in zip(starts, LENGTHS, strict=True)])
    targets = Targets(rows, pack.tokens[rows + 1], torch.ones(len(rows)))
    logits, sums = model(pack, [Logits(torch.arange(len(pack))), Likelihood(targets)])
    sums.loss.backward()
    names, transposed = model.config.hub_names(), model.config.hub_transposed()
    gradients = {names[n]: p.grad.t() if n in transposed else p.grad for n, p in model.named_parameters()}
    return list(logits.detach().split(LENGTHS)), gradients


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}
