"""GPT-2: the decoder with learned positions.

Features:
    - learned positions, added to the token embedding
    - LayerNorm before each half of a block, and after the last block
    - multi-head attention from one fused projection; biases everywhere
    - GELU feed-forward, four times as wide
    - head tied to the input embedding
    - dropout of embeddings, attention and each half-block's output

References:
    Radford et al., 2019, "Language models are unsupervised multitask learners",
    https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from danlu.architecture.hub import chosen_vocabulary, known_fields, num_labels_of, refuse, written_class
from danlu.contracts import ArchitectureConfig, Memory, SequenceModel
from danlu.packed import Packed
from danlu.parts.attention import Backend
from danlu.parts.block import Pass, attend, backends
from danlu.parts.feedforward import GELUFeedForward
from danlu.parts.linear import Dropout, Linear
from danlu.parts.norm import LayerNorm
from danlu.parts.quantized import num_matrix_weights
from danlu.parts.readout import Head, Readout
from danlu.registry import export

_TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


@export("architecture", "gpt2", source="Radford et al., 2019, https://openai.com/index/better-language-models/")
class GPT2Config(ArchitectureConfig):
    """GPT-2: decoder-only, learned positions, LayerNorm, GELU."""

    model_type = "gpt2"

    vocab_size: int | None = Field(None, ge=2)
    """How many tokens there are; null takes the tokenizer's."""
    n_positions: int = Field(1024, ge=1)
    """How many positions are learned: the longest sequence."""
    n_embd: int = Field(768, ge=1)
    """Width of the residual stream."""
    n_layer: int = Field(12, ge=1)
    """Blocks."""
    n_head: int = Field(12, ge=1)
    """Heads; divides the width."""
    n_inner: int | None = Field(None, ge=1)
    """Inner width of the feed-forward; four times the stream's by default."""
    layer_norm_epsilon: float = Field(1e-5, gt=0)
    """Added to the variance."""
    embd_pdrop: float = Field(0.1, ge=0, lt=1)
    """Fraction of the embedding dropped while training."""
    attn_pdrop: float = Field(0.1, ge=0, lt=1)
    """Fraction of attention probabilities dropped while training."""
    resid_pdrop: float = Field(0.1, ge=0, lt=1)
    """Fraction of each half-block's output dropped while training."""
    initializer_range: float = Field(0.02, gt=0)
    """Standard deviation of the initial weights."""
    num_labels: Literal[1] | None = None
    """1 is a head of one score a row in place of the one over tokens: a reward model."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd ({self.n_embd}) is not a multiple of n_head ({self.n_head})")
        return self

    def build(self) -> SequenceModel:
        """The network, its weights not yet set."""
        return GPT2(self)

    def initialize(self, model: nn.Module, seed: int) -> None:
        """Normal weights, zero biases, unit norms; what ends on the stream is scaled down by the root of its depth."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 1:
                nn.init.ones_(parameter)
            else:
                deep = (2 * self.n_layer) ** -0.5 if name.endswith("c_proj.weight") else 1.0
                nn.init.normal_(parameter, std=self.initializer_range * deep, generator=generator)

    @classmethod
    def from_hub(cls, config: Mapping[str, Any]) -> Self:
        """See `ArchitectureConfig`."""
        refuse(config, "activation_function", "gelu_new", "gelu_pytorch_tanh")
        refuse(config, "scale_attn_weights", True)
        refuse(config, "scale_attn_by_inverse_layer_idx", False)
        refuse(config, "tie_word_embeddings", True)
        refuse(config, "add_cross_attention", False)
        return cls(**{**known_fields(cls, config), "num_labels": num_labels_of(config)})

    def to_hub(self) -> dict[str, Any]:
        """See `ArchitectureConfig`."""
        own = self.model_dump(mode="json", exclude={"num_labels"})
        fixed = {"activation_function": "gelu_new", "tie_word_embeddings": True, "n_ctx": self.n_positions}
        return {
            **own,
            **fixed,
            "model_type": self.model_type,
            **written_class("GPT2", "LMHeadModel", scores=self.scores),
        }

    def hub_names(self) -> Mapping[str, str]:
        """See `ArchitectureConfig`: "transformer." in front of all but a head of its own."""
        with torch.device("meta"):
            names = dict(GPT2(self).named_parameters())
        return {name: name if name.startswith("score") else f"transformer.{name}" for name in names}

    def hub_transposed(self) -> frozenset[str]:
        """See `ArchitectureConfig`: GPT-2's files hold its projections input first."""
        return frozenset(name for name in self.hub_names() if name.endswith(_TRANSPOSED))

    @property
    def vocabulary(self) -> int:
        """See `ArchitectureConfig`."""
        return chosen_vocabulary(self.vocab_size)

    @property
    def longest(self) -> int:
        """See `ArchitectureConfig`."""
        return self.n_positions

    @property
    def scores(self) -> bool:
        """See `ArchitectureConfig`."""
        return self.num_labels is not None

    @property
    def memory_shape(self) -> tuple[int, int, int]:
        """See `ArchitectureConfig`."""
        return self.n_layer, self.n_head, self.n_embd // self.n_head


class Attention(nn.Module):
    """Multi-head attention."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, bias=True)
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=True)
        self.dropout = Dropout(config.attn_pdrop)
        self.heads = config.n_head

    def forward(self, x: Float[Tensor, "T D"], given: Pass, backend: Backend | None) -> Float[Tensor, "T D"]:
        """Let every row look at what it may see."""
        q, k, v = (part.unflatten(1, (self.heads, -1)) for part in self.c_attn(x).chunk(3, dim=1))
        seen = attend(q, k, v, given, dropout=self.dropout, backend=backend)
        return self.c_proj(seen)


class Block(nn.Module):
    """Attention, then the feed-forward, each added to the stream."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = GELUFeedForward(config.n_embd, config.n_inner or 4 * config.n_embd, tanh=True)
        self.attn_drop = Dropout(config.resid_pdrop)
        self.mlp_drop = Dropout(config.resid_pdrop)

    def forward(self, x: Float[Tensor, "T D"], given: Pass, backend: Backend | None = None) -> Float[Tensor, "T D"]:
        """One block."""
        x = x + self.attn_drop(self.attn(self.ln_1(x), given, backend), given.keys)
        return x + self.mlp_drop(self.mlp(self.ln_2(x)), given.keys)


class GPT2(SequenceModel):
    """The decoder."""

    config: GPT2Config

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocabulary, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd, config.layer_norm_epsilon)
        if config.scores:
            self.score = Linear(config.n_embd, 1)

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """See `SequenceModel`."""
        return self.h

    def forward(self, packed: Packed, readouts: Sequence[Readout], memory: Memory | None = None) -> tuple[Any, ...]:
        """See `SequenceModel`."""
        given = Pass.of(packed, memory)
        x = (self.wte(packed.tokens) + self.wpe(packed.positions)).to(self.compute_dtype)
        x = self.drop(x, packed.keys)
        for block, backend in zip(self.h, backends(memory, len(self.h)), strict=True):
            x = block(x, given, backend)
        x, scores = self.ln_f(x), self.config.scores
        head = Head(self.score.weight if scores else self.wte.weight, scores=scores)
        return tuple(readout.read(x, head) for readout in readouts)

    def flops(self, packed: Packed, num_targets: int) -> int:
        """See `SequenceModel`."""
        c = self.config
        linear = num_matrix_weights(self.h)
        attention = 4 * c.n_embd * c.n_layer * packed.visible_pairs()
        return 2 * len(packed) * linear + attention + 2 * num_targets * c.n_embd * (1 if c.scores else c.vocabulary)
