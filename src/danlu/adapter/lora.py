"""LoRA: a matrix of low rank beside each weight matrix.

    y = W x + s B A x,   A: [r, inputs], B: [outputs, r],   s = alpha / r   (rsLoRA: alpha / sqrt(r))

B is 0 at first, so the model starts as it was, to the bit. DoRA learns the length of each row of the sum apart from its
direction:

    y = m / |W + s B A| (W + s B A) x,   m = |W| at first; no gradient through the length |W + s B A|

References:
    Hu et al., 2021, "LoRA", https://arxiv.org/abs/2106.09685
    Kalajdzievski, 2023, "A rank stabilization scaling factor" (rsLoRA), https://arxiv.org/abs/2312.03732
    Liu et al., 2024, "DoRA", https://arxiv.org/abs/2402.09353
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from danlu.adapter.adapted import Adapters
from danlu.adapter.contract import DEFAULT, PEFT_ROOT, Adapter, Attached, part_name
from danlu.adapter.low_rank import LowRank, matrix_of, put_beside
from danlu.adapter.targets import ALL_LINEAR, fits, is_transposed, linears, matching
from danlu.contracts import SequenceModel
from danlu.errors import RecipeError, UnsupportedError
from danlu.parts.quantized import Quantized, is_quantized
from danlu.registry import export


@export("adapter", "lora", source="Hu et al., 2021, https://arxiv.org/abs/2106.09685")
class LoRA(Adapter):
    """A trained matrix of low rank beside each frozen weight matrix."""

    peft_type: ClassVar[str] = "LORA"

    rank: int = Field(8, ge=1)
    """r, the rank of what is added."""
    alpha: float = Field(16.0, gt=0)
    """What is added is multiplied by alpha / r."""
    rslora: bool = False
    """Multiply by alpha / sqrt(r) instead, for large ranks."""
    dora: bool = False
    """Learn the length of each row of the weights apart from its direction (DoRA)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Fraction of the inputs of A dropped while training."""
    targets: tuple[str, ...] = (ALL_LINEAR,)
    """The layers it acts on, by pattern: q_proj, layers.0.*, all-linear (all of the blocks)."""
    layers: tuple[int, ...] | None = None
    """The blocks it acts on, counted from 0, below 0 from the end; all by default."""
    ranks: dict[str, int] = Field(default_factory=dict)
    """Another rank for some layers, by pattern."""
    alphas: dict[str, float] = Field(default_factory=dict)
    """Another alpha for some layers, by pattern."""

    def attach(self, model: SequenceModel, *, name: str = DEFAULT, seed: int = 0) -> LowRankLayers:
        """See `Adapter`."""
        return LowRankLayers(self, model, name, seed)

    def rank_of(self, names: tuple[str, str]) -> int:
        """The rank of a layer, by its names here and in the hub."""
        return next((r for pattern, r in self.ranks.items() if any(fits(n, pattern) for n in names)), self.rank)

    def alpha_of(self, names: tuple[str, str]) -> float:
        """The alpha of a layer."""
        return next((a for pattern, a in self.alphas.items() if any(fits(n, pattern) for n in names)), self.alpha)

    def scale(self, rank: int, alpha: float) -> float:
        """What is added is multiplied by."""
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    @classmethod
    def from_hub(cls, config: Mapping[str, Any]) -> Self:
        """See `Adapter`."""
        for key, usual in _USUAL.items():
            if config.get(key) not in (None, False, {}, [], *usual):
                raise UnsupportedError(
                    f"'{key}' is {config[key]!r}, which is not done here", where="adapter_config.json"
                )
        targets = config.get("target_modules") or ()
        if isinstance(targets, str) and targets != ALL_LINEAR:
            raise UnsupportedError(
                f"'target_modules' is the regular expression {targets!r}",
                where="adapter_config.json",
                do="Write the names as a list.",
            )
        layers = config.get("layers_to_transform")
        return cls(
            rank=config["r"],
            alpha=config["lora_alpha"],
            rslora=bool(config.get("use_rslora")),
            dora=bool(config.get("use_dora")),
            dropout=config.get("lora_dropout") or 0.0,
            targets=(targets,) if isinstance(targets, str) else tuple(sorted(targets)),
            layers=None if layers is None else tuple([layers] if isinstance(layers, int) else layers),
            ranks={_unescaped(key): value for key, value in (config.get("rank_pattern") or {}).items()},
            alphas={_unescaped(key): value for key, value in (config.get("alpha_pattern") or {}).items()},
            also_train=tuple(config.get("modules_to_save") or ()),
        )


_USUAL: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "lora_bias": (),
    "layer_replication": (),
    "megatron_config": (),
    "trainable_token_indices": (),
    "exclude_modules": (),
    "target_parameters": (),
    "use_qalora": (),
    "alora_invocation_tokens": (),
    "arrow_config": (),
    "corda_config": (),
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva"),
}
"""What `peft` may say of a LoRA that would be computed differently here, and the values that would not."""


class LowRankLayers(Attached):
    """A LoRA in a model."""

    adapter: LoRA

    def __init__(self, adapter: LoRA, model: SequenceModel, name: str, seed: int) -> None:
        super().__init__(adapter, model, name, seed)
        candidates = linears(model, adapter.layers)
        self.targets = {target: candidates[target] for target in matching(adapter.targets, candidates, "targets")}
        for field, patterns in (("ranks", adapter.ranks), ("alphas", adapter.alphas)):
            if patterns:
                matching(patterns, self.targets, field)
        adapters = Adapters.of(model)
        self.part = part_name("lora", name)
        self._before: dict[str, Tensor] = {}
        for target, theirs in self.targets.items():
            base, names = model.get_submodule(target), (target, theirs)
            rank = adapter.rank_of(names)
            if rank > min(matrix_of(base).shape):
                sizes = " x ".join(map(str, matrix_of(base).shape))
                raise RecipeError(
                    f"rank {rank} is larger than '{target}' ({sizes})", where="adapter.rank", do="Lower it."
                )
            scale = adapter.scale(rank, adapter.alpha_of(names))
            low = LowRank(base, rank, scale, dropout=adapter.dropout, dora=adapter.dora, adapters=adapters, name=name)
            bound = 1 / math.sqrt(low.A.shape[1])
            nn.init.uniform_(low.A, -bound, bound, generator=self.generator(f"{target}.{self.part}.A"))
            put_beside(base, self.part, low)
        adapters.attached[name] = self

    def layer(self, target: str) -> LowRank:
        """What stands beside a layer."""
        found = self.model.get_submodule(f"{target}.{self.part}")
        assert isinstance(found, LowRank)
        return found

    @property
    def own(self) -> Mapping[str, str]:
        """See `Attached`."""
        kinds = {"A": "lora_A.weight", "B": "lora_B.weight"}
        if self.adapter.dora:
            kinds["magnitude"] = "lora_magnitude_vector"
        return {
            f"{target}.{self.part}.{ours}": f"{PEFT_ROOT}.{hub}.{theirs}"
            for target, hub in self.targets.items()
            for ours, theirs in kinds.items()
        }

    def to_hub(self) -> dict[str, Any]:
        """See `Attached`; layers are named in full, so that no pattern has to mean the same elsewhere."""
        adapter = self.adapter
        of = {hub: (name, hub) for name, hub in self.targets.items()}
        ranks = {hub: adapter.rank_of(names) for hub, names in of.items()}
        alphas = {hub: adapter.alpha_of(names) for hub, names in of.items()}
        return {
            "r": adapter.rank,
            "lora_alpha": adapter.alpha,
            "lora_dropout": adapter.dropout,
            "use_rslora": adapter.rslora,
            "use_dora": adapter.dora,
            "target_modules": sorted(_shortest(self.targets, self.model)),
            "rank_pattern": {hub: rank for hub, rank in ranks.items() if rank != adapter.rank},
            "alpha_pattern": {hub: alpha for hub, alpha in alphas.items() if alpha != adapter.alpha},
            "fan_in_fan_out": self._transposed_there(),
            "bias": "none",
            "init_lora_weights": True,
        }

    def _transposed_there(self) -> bool:
        """Whether `peft` finds the layers' weights inputs first."""
        held = self.model.hub_transposed()
        layers = {target: self.model.get_submodule(target) for target in self.targets}
        turned = (
            is_transposed(layer) or (isinstance(layer, Quantized) and layer.transposed) for layer in layers.values()
        )
        return any(f"{target}.weight" in held for target in layers) or any(turned)

    @torch.no_grad()
    def merge(self) -> None:
        """See `Attached`; `unmerge` brings back the very bits."""
        if any(is_quantized(self.model.get_submodule(target)) for target in self.targets):
            what = "the base is quantised, and no weights of so few bits are what the adapter makes of them"
            raise UnsupportedError(what, do="Merge it into the base as its files have it: danlu export --merge.")
        for target in self.targets:
            base = self.model.get_submodule(target)
            matrix = matrix_of(base)
            self._before[target] = matrix.detach().clone()
            matrix.copy_(self.layer(target).merged(base))
            self.layer(target).merged_in = True

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take it out of the model's weights again, which are then what they were."""
        for target, before in self._before.items():
            base = self.model.get_submodule(target)
            matrix_of(base).copy_(before)
            self.layer(target).merged_in = False
        self._before.clear()


def _shortest(targets: Mapping[str, str], model: SequenceModel) -> set[str]:
    """The last parts of the layers' names, where these mean no other layer; else all names in full."""
    named = set(targets.values())
    ends = {name.rpartition(".")[2] for name in named}
    every = {name.rpartition(".")[0] for name in model.hub_names().values()}
    return ends if {name for name in every if name.rpartition(".")[2] in ends} == named else named


def _unescaped(pattern: str) -> str:
    return pattern.replace("\\.", ".").removeprefix("^").removesuffix("$")
