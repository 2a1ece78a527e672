"""Llama, Qwen2 and Qwen3: one decoder, three settings.

Features:
    - rotary positions (default, linear, llama3 and YaRN scaling)
    - grouped-query attention; Qwen3 normalises each head's queries and keys, Qwen2 has biases on q, k and v
    - RMSNorm before each half of a block, none after; no biases otherwise
    - SwiGLU feed-forward
    - input embedding and head tied or not
    - windows on some layers (Qwen)

References:
    Touvron et al., 2023, "Llama 2", https://arxiv.org/abs/2307.09288
    Grattafiori et al., 2024, "The Llama 3 herd of models", https://arxiv.org/abs/2407.21783
    Yang et al., 2024, "Qwen2 technical report", https://arxiv.org/abs/2407.10671
    Yang et al., 2025, "Qwen3 technical report", https://arxiv.org/abs/2505.09388
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from danlu.architecture.hub import chosen_vocabulary, known_fields, num_labels_of, refuse, written_class
from danlu.contracts import ArchitectureConfig, Memory, SequenceModel
from danlu.packed import Packed
from danlu.parts.attention import Backend
from danlu.parts.block import Pass, attend, backends
from danlu.parts.feedforward import SwiGLU
from danlu.parts.linear import Dropout, Linear
from danlu.parts.norm import RMSNorm
from danlu.parts.quantized import num_matrix_weights
from danlu.parts.readout import Head, Readout
from danlu.parts.rope import Rotary, rotate
from danlu.registry import export

_FULL_LAYERS = 28
"""What the hub takes for `max_window_layers` where a config does not say."""


class LlamaFamilyConfig(ArchitectureConfig):
    """The fields of the family, by their hub names."""

    qk_norm: ClassVar[bool] = False
    qkv_bias: ClassVar[bool | None] = None
    hub_head_dim: ClassVar[int | None] = None

    vocab_size: int | None = Field(None, ge=2)
    """How many tokens there are; null takes the tokenizer's."""
    hidden_size: int = Field(512, ge=2)
    """Width of the residual stream."""
    intermediate_size: int = Field(1408, ge=1)
    """Inner width of the feed-forward."""
    num_hidden_layers: int = Field(8, ge=1)
    """Blocks."""
    num_attention_heads: int = Field(8, ge=1)
    """Query heads."""
    num_key_value_heads: int = Field(4, ge=1)
    """Key and value heads; divides the query heads."""
    head_dim: int = Field(64, ge=2, multiple_of=2)
    """Width of a head."""
    max_position_embeddings: int = Field(32768, ge=1)
    """The longest sequence the checkpoint is meant for."""
    rope_theta: float = Field(10000.0, gt=0)
    """Base of the rotary frequencies."""
    rope_scaling: dict[str, Any] | None = None
    """Rotary scaling as in hub files: its type and that type's fields."""
    rms_norm_eps: float = Field(1e-6, gt=0)
    """Added to the mean square."""
    tie_word_embeddings: bool = True
    """Whether the head is the input embedding."""
    attention_bias: bool = False
    """Whether q, k, v and the output projection have biases (Llama, Qwen3)."""
    mlp_bias: bool = False
    """Whether the feed-forward has biases (Llama)."""
    sliding_window: int | None = Field(None, ge=1)
    """How far back the layers named so in `layer_types` see, themselves included."""
    layer_types: tuple[Literal["full_attention", "sliding_attention"], ...] | None = None
    """For each block, whether `sliding_window` holds; all are full by default."""
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    """Fraction of attention probabilities dropped while training."""
    hidden_dropout: float = Field(0.0, ge=0, lt=1)
    """Fraction of each half-block's output dropped while training."""
    initializer_range: float = Field(0.02, gt=0)
    """Standard deviation of the initial weights."""
    num_labels: Literal[1] | None = None
    """1 is a head of one score a row in place of the one over tokens: a reward model."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) is not a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.layer_types is not None and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(f"layer_types has {len(self.layer_types)} entries for {self.num_hidden_layers} layers")
        return self

    def window(self, layer: int) -> int | None:
        """How far back a block sees."""
        sliding = self.layer_types is not None and self.layer_types[layer] == "sliding_attention"
        return self.sliding_window if sliding else None

    def build(self) -> SequenceModel:
        """The network, its weights not yet set."""
        return Llama(self)

    def initialize(self, model: nn.Module, seed: int) -> None:
        """Normal weights, zero biases, unit norms."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 1:
                nn.init.ones_(parameter)
            else:
                nn.init.normal_(parameter, std=self.initializer_range, generator=generator)

    @classmethod
    def from_hub(cls, config: Mapping[str, Any]) -> Self:
        """See `ArchitectureConfig`."""
        refuse(config, "hidden_act", "silu")
        refuse(config, "partial_rotary_factor", 1.0, None)
        fields = known_fields(cls, config)
        heads = fields.setdefault("num_key_value_heads", config["num_attention_heads"])
        fields["num_key_value_heads"] = heads if heads is not None else config["num_attention_heads"]
        if fields.get("head_dim") is None:
            even = config["hidden_size"] // config["num_attention_heads"]
            fields["head_dim"] = cls.hub_head_dim or even
        rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
        fields["rope_theta"] = rope.pop("rope_theta", None) or config.get("rope_theta") or 10000.0
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            rope.setdefault("original_max_position_embeddings", config.get("max_position_embeddings"))
        fields["rope_scaling"] = None if kind == "default" else rope
        fields.setdefault("tie_word_embeddings", False)
        fields["num_labels"] = num_labels_of(config)
        if not config.get("use_sliding_window", False) and cls.model_type != "llama":
            fields["sliding_window"] = fields["layer_types"] = None
        elif fields.get("layer_types") is None and fields.get("sliding_window"):
            full = config.get("max_window_layers", _FULL_LAYERS)
            layers = range(config["num_hidden_layers"])
            fields["layer_types"] = tuple("full_attention" if i < full else "sliding_attention" for i in layers)
        return cls(**fields)

    def to_hub(self) -> dict[str, Any]:
        """See `ArchitectureConfig`."""
        rope = {"rope_type": "default", **(self.rope_scaling or {}), "rope_theta": self.rope_theta}
        own = self.model_dump(exclude={"rope_scaling", "hidden_dropout", "num_labels"}, mode="json")
        return {
            **own,
            "model_type": self.model_type,
            **written_class(self.model_type.capitalize(), "ForCausalLM", scores=self.scores),
            "hidden_act": "silu",
            "rope_parameters": rope,
            "rope_scaling": self.rope_scaling,
            "use_sliding_window": self.layer_types is not None,
        }

    def hub_names(self) -> Mapping[str, str]:
        """See `ArchitectureConfig`: "model." in front of all but the head."""
        with torch.device("meta"):
            names = dict(Llama(self).named_parameters())
        return {name: name if name.startswith(("lm_head", "score")) else f"model.{name}" for name in names}

    @property
    def vocabulary(self) -> int:
        """See `ArchitectureConfig`."""
        return chosen_vocabulary(self.vocab_size)

    @property
    def scores(self) -> bool:
        """See `ArchitectureConfig`."""
        return self.num_labels is not None

    @property
    def memory_shape(self) -> tuple[int, int, int]:
        """See `ArchitectureConfig`."""
        return self.num_hidden_layers, self.num_key_value_heads, self.head_dim


@export("architecture", "llama", source="Touvron et al., 2023, https://arxiv.org/abs/2307.09288")
class LlamaConfig(LlamaFamilyConfig):
    """Llama: decoder-only, rotary, grouped-query attention, SwiGLU."""

    model_type = "llama"


@export("architecture", "qwen2", source="Yang et al., 2024, https://arxiv.org/abs/2407.10671")
class Qwen2Config(LlamaFamilyConfig):
    """Qwen2: Llama with biases on queries, keys and values."""

    model_type = "qwen2"
    qkv_bias = True


@export("architecture", "qwen3", source="Yang et al., 2025, https://arxiv.org/abs/2505.09388")
class Qwen3Config(LlamaFamilyConfig):
    """Qwen3: Llama with normalised queries and keys."""

    model_type = "qwen3"
    qk_norm = True
    hub_head_dim = 128


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: LlamaFamilyConfig, layer: int) -> None:
        super().__init__()
        width, head = config.hidden_size, config.head_dim
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        biased = config.attention_bias if config.qkv_bias is None else config.qkv_bias
        self.q_proj = Linear(width, heads * head, bias=biased)
        self.k_proj = Linear(width, groups * head, bias=biased)
        self.v_proj = Linear(width, groups * head, bias=biased)
        self.o_proj = Linear(heads * head, width, bias=config.attention_bias)
        self.q_norm = RMSNorm(head, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(head, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.dropout = Dropout(config.attention_dropout)
        self.head, self.window = head, config.window(layer)

    def forward(self, x: Float[Tensor, "T D"], given: Pass, backend: Backend | None) -> Float[Tensor, "T D"]:
        """Let every row look at what it may see."""
        q, k, v = (p(x).unflatten(1, (-1, self.head)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(self.q_norm(q), given.cos, given.sin), rotate(self.k_norm(k), given.cos, given.sin)
        seen = attend(q, k, v, given, dropout=self.dropout, window=self.window, backend=backend)
        return self.o_proj(seen)


class Block(nn.Module):
    """Attention, then the feed-forward, each added to the stream."""

    def __init__(self, config: LlamaFamilyConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.attention_drop = Dropout(config.hidden_dropout)
        self.mlp_drop = Dropout(config.hidden_dropout)

    def forward(self, x: Float[Tensor, "T D"], given: Pass, backend: Backend | None = None) -> Float[Tensor, "T D"]:
        """One block."""
        x = x + self.attention_drop(self.self_attn(self.input_layernorm(x), given, backend), given.keys)
        return x + self.mlp_drop(self.mlp(self.post_attention_layernorm(x)), given.keys)


class Llama(SequenceModel):
    """The decoder."""

    config: LlamaFamilyConfig

    def __init__(self, config: LlamaFamilyConfig) -> None:
        super().__init__()
        self.config = config
        # The head's gradient is as large as the table; to a tied one the few rows of the input are added, not a table.
        tied = config.tie_word_embeddings and not config.scores
        self.embed_tokens = nn.Embedding(config.vocabulary, config.hidden_size, sparse=tied)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if config.scores:
            self.score = Linear(config.hidden_size, 1)
        elif not tied:
            self.lm_head = Linear(config.hidden_size, config.vocabulary)
        self.rotary = Rotary(config.head_dim, config.rope_theta, config.rope_scaling)

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """See `SequenceModel`."""
        return self.layers

    def forward(self, packed: Packed, readouts: Sequence[Readout], memory: Memory | None = None) -> tuple[Any, ...]:
        """See `SequenceModel`."""
        given = Pass.of(packed, memory, self.rotary(packed.positions))
        x = self.embed_tokens(packed.tokens).to(self.compute_dtype)
        for block, backend in zip(self.layers, backends(memory, len(self.layers)), strict=True):
            x = block(x, given, backend)
        x = self.norm(x)
        head = self._head()
        return tuple(readout.read(x, head) for readout in readouts)

    def _head(self) -> Head:
        if self.config.scores:
            return Head(self.score.weight, scores=True)
        return Head(self.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight)

    def flops(self, packed: Packed, num_targets: int) -> int:
        """See `SequenceModel`."""
        c = self.config
        linear = num_matrix_weights(self.layers)
        pairs = sum(packed.visible_pairs(window) * n for window, n in _count(map(c.window, range(len(self.layers)))))
        attention = 4 * c.num_attention_heads * c.head_dim * pairs
        return (
            2 * len(packed) * linear + attention + 2 * num_targets * c.hidden_size * (1 if c.scores else c.vocabulary)
        )


def _count(windows: Iterable[int | None]) -> list[tuple[int | None, int]]:
    each = list(windows)
    return [(window, each.count(window)) for window in dict.fromkeys(each)]
