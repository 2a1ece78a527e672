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
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.adapter.adapted import Adapters
from danlu.adapter.contract import DEFAULT, PEFT_ROOT, Adapter, Attached, part_name
from danlu.adapter.targets import ALL_LINEAR, fits, is_transposed, linears, matching
from danlu.contracts import SequenceModel
from danlu.errors import RecipeError, UnsupportedError
from danlu.parts.linear import Dropout
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


class LowRank(nn.Module):
    """What stands beside one linear layer.

    Args:
        base: the layer.
        rank: r.
        scale: s.
        dropout: of its inputs.
        dora: whether lengths are learned.
        adapters: where it looks up which rows it acts on.
        name: what its adapter is called there.
    """

    base_squares: Tensor | None

    def __init__(
        self, base: nn.Module, rank: int, scale: float, *, dropout: float, dora: bool, adapters: Adapters, name: str
    ) -> None:
        super().__init__()
        weight = _matrix(base)
        outputs, inputs = weight.shape
        self.A = nn.Parameter(torch.empty(rank, inputs))
        self.B = nn.Parameter(torch.zeros(outputs, rank))
        squares = weight.detach().float().square().sum(1) if dora else None
        self.register_buffer("base_squares", squares, persistent=False)
        self.magnitude = nn.Parameter(squares.sqrt()) if squares is not None else None
        self.dropout = Dropout(dropout)
        self.scale = scale
        self._adapters, self._name = adapters, name

    def beside(self, base: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor | None:
        """The layer's result with its own added; None, which leaves it, where it does not act."""
        acting = self._adapters.acting
        if self._name not in acting:
            return None
        x, wide, rows = args[0].flatten(0, -2), y.flatten(0, -2), acting[self._name]
        keys = self._adapters.keys if self.dropout.p > 0 else None
        if (rows is not None or keys is not None) and len(x) != self._adapters.num_rows:
            what = "a layer is given other rows than the pass has (an expert's)"
            raise UnsupportedError(what, where="adapter.targets", do="Leave it out, or set adapter.dropout=0.")
        if rows is None:
            return self._changed(base, x, wide, keys).view(y.shape)
        if isinstance(rows, tuple) and self.magnitude is None and not torch.is_grad_enabled():
            here = slice(*rows)  # added where it lies: several adapters in a pack cost little more than one
            inner = self._inner(x[here], y.dtype, None if keys is None else keys[here])
            wide[here].addmm_(inner, self.B.to(y.dtype).t(), alpha=self.scale)
            return wide.view(y.shape)
        chosen: Tensor | slice = slice(*rows) if isinstance(rows, tuple) else rows
        changed = self._changed(base, x[chosen], wide[chosen], None if keys is None else keys[chosen])
        result = wide.clone() if torch.is_grad_enabled() else wide  # the layer's result is nobody else's
        result[chosen] = changed
        return result.view(y.shape)

    def _changed(
        self, base: nn.Module, x: Float[Tensor, "T I"], y: Float[Tensor, "T O"], keys: Int[Tensor, " T"] | None
    ) -> Float[Tensor, "T O"]:
        inner = self._inner(x, y.dtype, keys)
        if self.magnitude is None:
            return torch.addmm(y, inner, self.B.to(y.dtype).t(), alpha=self.scale)
        ratio = (self.magnitude / self._lengths(base)).to(y.dtype)
        bias = getattr(base, "bias", None)
        turned = y if bias is None else y - bias.to(y.dtype)
        low = F.linear(inner, self.B.to(y.dtype)) * (self.scale * ratio)
        return torch.addcmul(y, turned, ratio - 1) + low

    def _inner(
        self, x: Float[Tensor, "T I"], dtype: torch.dtype, keys: Int[Tensor, " T"] | None
    ) -> Float[Tensor, "T r"]:
        return F.linear(self.dropout(x, keys), self.A.to(x.dtype)).to(dtype)

    def _lengths(self, base: nn.Module) -> Float[Tensor, " O"]:
        """|W + s B A| of each row, the product never made: from |W|^2, W A^T and A A^T."""
        assert self.base_squares is not None
        with torch.no_grad():
            crossed = (F.linear(_matrix(base).to(self.A.dtype), self.A) * self.B).sum(1)
            own = ((self.B @ (self.A @ self.A.t())) * self.B).sum(1)
            return (self.base_squares + 2 * self.scale * crossed + self.scale**2 * own).sqrt()

    @torch.no_grad()
    def merged(self, base: nn.Module) -> Float[Tensor, "O I"]:
        """The weight that computes what both do."""
        weight = _matrix(base) + self.scale * (self.B @ self.A)
        return weight if self.magnitude is None else weight * (self.magnitude / self._lengths(base))[:, None]


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
        self._hooks = {}
        for target, theirs in self.targets.items():
            base, names = model.get_submodule(target), (target, theirs)
            rank = adapter.rank_of(names)
            if rank > min(_matrix(base).shape):
                sizes = " x ".join(map(str, _matrix(base).shape))
                raise RecipeError(
                    f"rank {rank} is larger than '{target}' ({sizes})", where="adapter.rank", do="Lower it."
                )
            scale = adapter.scale(rank, adapter.alpha_of(names))
            low = LowRank(base, rank, scale, dropout=adapter.dropout, dora=adapter.dora, adapters=adapters, name=name)
            bound = 1 / math.sqrt(low.A.shape[1])
            nn.init.uniform_(low.A, -bound, bound, generator=self.generator(f"{target}.{self.part}.A"))
            base.add_module(self.part, low)
            self._hooks[target] = base.register_forward_hook(low.beside)
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
            matrix = _matrix(base)
            self._before[target] = matrix.detach().clone()
            matrix.copy_(self.layer(target).merged(base))
            self._hooks[target].remove()

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take it out of the model's weights again, which are then what they were."""
        for target, before in self._before.items():
            base = self.model.get_submodule(target)
            _matrix(base).copy_(before)
            self._hooks[target] = base.register_forward_hook(self.layer(target).beside)
        self._before.clear()


def _matrix(base: nn.Module) -> Float[Tensor, "O I"]:
    """A layer's weight, outputs first."""
    weight = base.weight
    assert isinstance(weight, Tensor)
    return weight.t() if is_transposed(base) else weight


def _shortest(targets: Mapping[str, str], model: SequenceModel) -> set[str]:
    """The last parts of the layers' names, where these mean no other layer; else all names in full."""
    named = set(targets.values())
    ends = {name.rpartition(".")[2] for name in named}
    every = {name.rpartition(".")[0] for name in model.hub_names().values()}
    return ends if {name for name in every if name.rpartition(".")[2] in ends} == named else named


def _unescaped(pattern: str) -> str:
    return pattern.replace("\\.", ".").removeprefix("^").removesuffix("$")
