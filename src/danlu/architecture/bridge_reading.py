"""What is read from the config and the modules of a model of `transformers`, each family having names of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from danlu.architecture.bridge_attention import Layer

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_EXPERTS_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk")


@dataclass(frozen=True)
class BridgedConfig:
    """What other rooms read of a `danlu.contracts.ArchitectureConfig`.

    Attributes:
        model_type: what the hub calls it.
        vocabulary: how many tokens there are.
        longest: the longest sequence it can position, or None.
        memory_shape: (layers, key heads, head width) of the keys it would have kept, the widest where layers differ.
        scores: whether its head gives one score a row.
        memory_alike: whether that is the shape of every layer's keys, and of its values.
    """

    model_type: str
    vocabulary: int
    longest: int | None
    memory_shape: tuple[int, int, int]
    scores: bool
    memory_alike: bool

    @staticmethod
    def of(inner: Any, layers: Sequence[Layer]) -> BridgedConfig:
        """That of a model whose layers have been observed."""
        embedding = inner.get_input_embeddings()
        widest = max(layers, key=lambda layer: layer.groups * layer.key_width)
        return BridgedConfig(
            model_type=inner.config.model_type,
            vocabulary=embedding.num_embeddings,
            longest=_longest(inner, embedding),
            memory_shape=(len(layers), widest.groups, widest.key_width),
            scores=_scores(inner),
            memory_alike=len({(x.groups, width) for x in layers for width in (x.key_width, x.value_width)}) == 1,
        )


def _longest(inner: Any, embedding: nn.Module) -> int | None:
    """The number of positions, where they are learned."""
    tables = [module for module in body_of(inner).modules() if isinstance(module, nn.Embedding)]
    if all(table is embedding for table in tables):
        return None
    return getattr(text_config(inner), "max_position_embeddings", None)


def text_config(inner: Any) -> Any:
    """The config of the part that reads text, which is all of it unless there are others."""
    return inner.config.get_text_config(decoder=True)


def body_of(inner: Any) -> Any:
    """The part beneath the head: the one that the class names, or else that nearly all call `model`."""
    body = inner.base_model
    return body if body is not inner else getattr(inner, "model", None)


def head_of(inner: Any) -> Any:
    """What is over the hidden states: logits of tokens, or scores."""
    return getattr(inner, "score", None) if _scores(inner) else inner.get_output_embeddings()


def _scores(inner: Any) -> bool:
    return type(inner).__name__.endswith("ForSequenceClassification")


def logit_rule(inner: Any) -> tuple[float, float | None]:
    """What logits are multiplied by, and what they are capped at."""
    text = text_config(inner)
    scale = (getattr(text, "logit_scale", None) or 1.0) / (getattr(text, "logits_scaling", None) or 1.0)
    return scale, getattr(text, "final_logit_softcapping", None)


def active_parameters(inner: Any) -> int:
    """How many multiply-adds a token costs in the matrices of the layers: of experts, those it goes to."""
    known = text_config(inner).to_dict()
    experts = next((known[name] for name in _EXPERTS if known.get(name)), 1)
    chosen = next((known[name] for name in _EXPERTS_CHOSEN if known.get(name)), experts)
    tables = {id(module.weight) for module in body_of(inner).modules() if isinstance(module, nn.Embedding)}
    total = 0
    for name, parameter in body_of(inner).named_parameters():
        if parameter.dim() >= 2 and id(parameter) not in tables and not name.endswith("bias"):
            total += parameter.numel() * chosen // experts if ".experts." in name else parameter.numel()
    return total


def blocks_of(inner: Any, layers: Sequence[Layer]) -> Sequence[nn.Module]:
    """The list of modules each of which attends once; none where there is no such list."""
    attending = {id(layer.module) for layer in layers}
    for stack in inner.modules():
        matching = isinstance(stack, nn.ModuleList) and len(stack) == len(layers)
        if matching and all(sum(id(module) in attending for module in block.modules()) == 1 for block in stack):
            return list(stack)
    return ()


def special_tokens(config: Mapping[str, Any]) -> set[int]:
    """The ids that a config gives a meaning to."""
    return {
        value
        for name, value in entries(config)
        if isinstance(value, int) and ("token_id" in name or "token_index" in name)
    }


def notes_on(inner: Any, layers: Sequence[Layer]) -> Iterator[str]:
    """What is done otherwise than a config says."""
    for name, value in text_config(inner).to_dict().items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            continue
        keyed = "att" in name and any(layer.dropout == value for layer in layers)
        elsewhere = name.startswith(("summary", "classifier"))
        if ("drop" in name or "jitter" in name) and not keyed and not elsewhere:
            yield f"{name}={value} is off: it would draw from torch's generator, and results would depend on packing"
        if "aux_loss" in name or "z_loss" in name:
            yield f"{name}={value} is not used: nothing is added to the loss for the balance of experts"


def entries(config: Mapping[Any, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """Everything a config says, that of its parts too, by its dotted name."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from entries(value, f"{within}{name}.")
        else:
            yield f"{within}{name}", value
