"""The layer of LoRA: what stands beside one linear layer, alone or with those of other adapters."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.adapter.adapted import Adapters
from danlu.adapter.contract import Rows
from danlu.adapter.low_rank_product import low_rank_product
from danlu.adapter.targets import is_transposed
from danlu.errors import UnsupportedError
from danlu.parts.linear import Dropout
from danlu.parts.quantized import Quantized

_FEW = 64
"""Rows up to which the products of several adapters are made as one: there it is their number that costs."""


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

    Attributes:
        merged_in: whether the layer's own weights are what both do, meanwhile.
    """

    base_squares: Tensor | None

    def __init__(
        self, base: nn.Module, rank: int, scale: float, *, dropout: float, dora: bool, adapters: Adapters, name: str
    ) -> None:
        super().__init__()
        weight = matrix_of(base)
        outputs, inputs = weight.shape
        self.A = nn.Parameter(torch.empty(rank, inputs))
        self.B = nn.Parameter(torch.zeros(outputs, rank))
        squares = weight.detach().float().square().sum(1) if dora else None
        self.register_buffer("base_squares", squares, persistent=False)
        self.magnitude = nn.Parameter(squares.sqrt()) if squares is not None else None
        self.dropout = Dropout(dropout)
        self.scale = scale
        self._adapters, self._name = adapters, name
        self.merged_in = False

    @property
    def rows(self) -> Rows | None:
        """The rows it acts on in the pass at hand, where it acts; None is all of them."""
        return self._adapters.acting[self._name]

    @property
    def acts(self) -> bool:
        """Whether it acts in the pass at hand, and is not part of the layer's own weights meanwhile."""
        return not self.merged_in and self._name in self._adapters.acting

    def alone(self, base: nn.Module) -> bool:
        """Whether the layer and what it adds to each of its rows can be one operator, with a gradient."""
        usual = self.magnitude is None and (self._adapters.keys is None or self.dropout.p == 0)
        frozen = not isinstance(base, Quantized) and not any(p.requires_grad for p in base.parameters(recurse=False))
        return torch.is_grad_enabled() and usual and frozen and self.rows is None

    def with_layer(self, base: nn.Module, x: Float[Tensor, "*T I"]) -> Float[Tensor, "*T O"]:
        """The layer's result with its own, where it is `alone`."""
        if torch.is_autocast_enabled(x.device.type):  # as other libraries' models are run in less precision
            x = x.to(torch.get_autocast_dtype(x.device.type))
        bias = getattr(base, "bias", None)
        y, _ = low_rank_product(x.flatten(0, -2), matrix_of(base), bias, self.A, self.B, self.scale)
        return y.view(*x.shape[:-1], len(self.B))

    def add(self, base: nn.Module, x: Float[Tensor, "T I"], y: Float[Tensor, "T O"]) -> Float[Tensor, "T O"]:
        """The layer's result with what it adds to the rows that it acts on; the result given may be changed."""
        rows, keys = self.rows, self._adapters.keys if self.dropout.p > 0 else None
        if (rows is not None or keys is not None) and len(x) != self._adapters.num_rows:
            what = "a layer is given other rows than the pass has (an expert's)"
            raise UnsupportedError(what, where="adapter.targets", do="Leave it out, or set adapter.dropout=0.")
        if rows is None:
            return self._changed(base, x, y, keys)
        if self.in_place:
            assert isinstance(rows, tuple)
            here = slice(*rows)
            y[here].addmm_(self._inner(x[here], y.dtype, None), self.B.to(y.dtype).t(), alpha=self.scale)
            return y
        chosen: Tensor | slice = slice(*rows) if isinstance(rows, tuple) else rows
        changed = self._changed(base, x[chosen], y[chosen], None if keys is None else keys[chosen])
        result = y.clone() if torch.is_grad_enabled() else y  # the layer's result is nobody else's
        result[chosen] = changed
        return result

    @property
    def in_place(self) -> bool:
        """Whether what it does at the pass at hand is added to a run of the layer's result where that lies."""
        plain = self.magnitude is None and (self._adapters.keys is None or self.dropout.p == 0)
        return plain and isinstance(self.rows, tuple) and not torch.is_grad_enabled()

    def share(self, like: Float[Tensor, "T O"]) -> Float[Tensor, "T r"]:
        """What its inner products are multiplied by in the pass at hand: its scale where it acts, else 0."""
        assert isinstance(self.rows, tuple)
        share = like.new_zeros(len(like), len(self.A))
        share[slice(*self.rows)] = self.scale
        return share

    def kept(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        """What several layers need of the pass at hand, made by the first that asks."""
        return self._adapters.kept(key, make)

    @property
    def mark(self) -> tuple[str, int, float]:
        """What `share` follows from, beside the pass."""
        return self._name, len(self.A), self.scale

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
            crossed = (F.linear(matrix_of(base).to(self.A.dtype), self.A) * self.B).sum(1)
            own = ((self.B @ (self.A @ self.A.t())) * self.B).sum(1)
            return (self.base_squares + 2 * self.scale * crossed + self.scale**2 * own).sqrt()

    @torch.no_grad()
    def merged(self, base: nn.Module) -> Float[Tensor, "O I"]:
        """The weight that computes what both do."""
        weight = matrix_of(base) + self.scale * (self.B @ self.A)
        return weight if self.magnitude is None else weight * (self.magnitude / self._lengths(base))[:, None]


class WithLowRank(nn.Module):
    """A linear layer as it is while something stands beside it: the layer itself, of a class made from its own.

    A class, and no hook or wrapper: names stay, the layer's product can be made together with what is added to it, and
    a compiler has one graph for all layers of a class.
    """

    def forward(self, x: Float[Tensor, "*T I"]) -> Float[Tensor, "*T O"]:
        """Apply the layer to every row, and add to each what those do that act on it."""
        acting = [low for low in self._modules.values() if isinstance(low, LowRank) and low.acts]
        if len(acting) == 1 and acting[0].alone(self):
            return acting[0].with_layer(self, x)
        y: Tensor = super().forward(x)
        if not acting:
            return y
        rows, wide = x.flatten(0, -2), y.flatten(0, -2)
        if len(acting) > 1 and len(rows) <= _FEW and all(low.in_place for low in acting):
            _add_together(acting, rows, wide)
        else:
            for low in acting:
                wide = low.add(self, rows, wide)
        return wide.view(y.shape)


def put_beside(base: nn.Module, name: str, low: LowRank) -> None:
    """Let it stand beside a layer, as the layer's part of that name."""
    base.add_module(name, low)
    if not isinstance(base, WithLowRank):
        kind = type(base)
        base.__class__ = _CHANGED.setdefault(kind, type(f"{kind.__name__}WithLowRank", (WithLowRank, kind), {}))


_CHANGED: dict[type[nn.Module], type[nn.Module]] = {}
"""The class of a layer with something beside it, by its own."""


def _add_together(several: Sequence[LowRank], x: Float[Tensor, "T I"], y: Float[Tensor, "T O"]) -> None:
    """Add what several adapters do, each to its own rows, by two products of all their ranks side by side."""
    A, B = torch.cat([low.A for low in several]), torch.cat([low.B for low in several], dim=1)  # noqa: N806
    marks = (*(low.mark for low in several), y.dtype)
    share = several[0].kept(marks, lambda: torch.cat([low.share(y) for low in several], dim=1))
    y.addmm_(F.linear(x, A.to(x.dtype)).to(y.dtype) * share, B.to(y.dtype).t())


def matrix_of(base: nn.Module) -> Float[Tensor, "O I"]:
    """A layer's weight, outputs first."""
    weight = base.weight
    assert isinstance(weight, Tensor)
    return weight.t() if is_transposed(base) else weight
