"""The layer of LoRA: what stands beside one linear layer, alone or with those of other adapters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from danlu.adapter.adapted import Adapters
from danlu.adapter.targets import is_transposed
from danlu.errors import UnsupportedError
from danlu.parts.linear import Dropout

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
        self._served: object = None  # what acts in the pass in which another's call did this one's part

    def beside(self, base: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor | None:
        """The layer's result with its own added; None, which leaves it, where it does not act."""
        acting = self._adapters.acting
        if self._name not in acting or self._served is acting:
            return None
        x, wide, rows = args[0].flatten(0, -2), y.flatten(0, -2), acting[self._name]
        keys = self._adapters.keys if self.dropout.p > 0 else None
        if (rows is not None or keys is not None) and len(x) != self._adapters.num_rows:
            what = "a layer is given other rows than the pass has (an expert's)"
            raise UnsupportedError(what, where="adapter.targets", do="Leave it out, or set adapter.dropout=0.")
        if rows is None:
            return self._changed(base, x, wide, keys).view(y.shape)
        if isinstance(rows, tuple) and self._in_place:
            others = [] if len(x) > _FEW else [low for low in base.children() if isinstance(low, LowRank)]
            several = [low for low in others if low is self or low._in_place]
            if len(several) > 1:
                _add_together(several, self._adapters, x, wide)
            else:
                here = slice(*rows)
                wide[here].addmm_(self._inner(x[here], y.dtype, None), self.B.to(y.dtype).t(), alpha=self.scale)
            for low in several:
                low._served = None if low is self else acting
            return wide.view(y.shape)
        chosen: Tensor | slice = slice(*rows) if isinstance(rows, tuple) else rows
        changed = self._changed(base, x[chosen], wide[chosen], None if keys is None else keys[chosen])
        result = wide.clone() if torch.is_grad_enabled() else wide  # the layer's result is nobody else's
        result[chosen] = changed
        return result.view(y.shape)

    @property
    def _in_place(self) -> bool:
        """Whether what it does at the pass at hand is added to a run of the layer's result where that lies."""
        plain = self.magnitude is None and (self._adapters.keys is None or self.dropout.p == 0)
        return plain and isinstance(self._adapters.acting.get(self._name), tuple) and not torch.is_grad_enabled()

    def share(self, like: Float[Tensor, "T O"]) -> Float[Tensor, "T r"]:
        """What its inner products are multiplied by in the pass at hand: its scale where it acts, else 0."""
        rows = self._adapters.acting[self._name]
        assert isinstance(rows, tuple)
        share = like.new_zeros(len(like), len(self.A))
        share[slice(*rows)] = self.scale
        return share

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


def _add_together(
    several: Sequence[LowRank], adapters: Adapters, x: Float[Tensor, "T I"], y: Float[Tensor, "T O"]
) -> None:
    """Add what several adapters do, each to its own rows, by two products of all their ranks side by side."""
    A, B = torch.cat([low.A for low in several]), torch.cat([low.B for low in several], dim=1)  # noqa: N806
    marks = (*(low.mark for low in several), y.dtype)
    share = adapters.kept(marks, lambda: torch.cat([low.share(y) for low in several], dim=1))
    y.addmm_(F.linear(x, A.to(x.dtype)).to(y.dtype) * share, B.to(y.dtype).t())


def matrix_of(base: nn.Module) -> Float[Tensor, "O I"]:
    """A layer's weight, outputs first."""
    weight = base.weight
    assert isinstance(weight, Tensor)
    return weight.t() if is_transposed(base) else weight
