"""What tells a fine-tuned model from its base, as an adapter of low rank.

Of each matrix of the blocks the difference D is cut to the rank r that comes nearest to it:

    D = U S V^T,   B = U_r S_r,   A = V_r^T,   |D - B A| = sqrt(s_{r+1}^2 + s_{r+2}^2 + ...)

References:
    Eckart and Young, 1936, "The approximation of one matrix by another of lower rank",
    https://doi.org/10.1007/BF02288367
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from danlu.adapter.lora import LoRA, LowRankLayers
from danlu.adapter.low_rank import matrix_of
from danlu.adapter.targets import linears, matching, named_modules
from danlu.contracts import SequenceModel
from danlu.errors import CheckpointError, RecipeError

_SMALL = 1 << 20
"""Elements of a matrix up to which it is decomposed in float64."""


@dataclass(frozen=True)
class RankError:
    """How far differences of a rank are from the true ones, as shares of these (Frobenius norm).

    Attributes:
        rank: r, of each matrix that has as much.
        overall: over all matrices together.
        worst: of the matrix that is off most.
        matrix: its name in the hub.
    """

    rank: int
    overall: float
    worst: float
    matrix: str


@dataclass(frozen=True)
class Difference:
    """An adapter in the base, and what it leaves out.

    Attributes:
        attached: the adapter.
        errors: at the ranks 1, 2, 4, ... up to its own.
        full: at full rank: what the arithmetic itself loses.
        left_out: parameters that differ and that the adapter does not have, by their names in the hub, each with how
            much it differs as a share of its length.
    """

    attached: LowRankLayers
    errors: tuple[RankError, ...]
    full: RankError
    left_out: Mapping[str, float]


@dataclass(frozen=True)
class _Parts:
    """The decomposition of a matrix, cut off."""

    B: Float[Tensor, "O r"]
    A: Float[Tensor, "r I"]
    values: Float[Tensor, " K"]
    lost: float

    def error(self, rank: int) -> float:
        """The square of what a rank leaves out."""
        return float(self.values[rank:].square().sum())

    @property
    def square(self) -> float:
        """Of the whole."""
        return float(self.values.square().sum())


def difference(
    tuned: SequenceModel,
    base: SequenceModel,
    rank: int,
    also: Sequence[str] = (),
    *,
    heard: Callable[[int, int], None] = lambda *_: None,
) -> Difference:
    """What a fine-tune has learned, as a LoRA that is put into its base.

    Args:
        tuned: the fine-tune, all weights its own.
        base: what it was tuned from, which is given the adapter.
        rank: r; a smaller matrix has its own full rank.
        also: modules that the adapter carries whole, by pattern.
        heard: hears how many matrices are done, and how many there are.

    Raises:
        CheckpointError: when the two are not of one architecture and its sizes, or do not differ.
        RecipeError: when the rank is larger than every matrix, or a pattern matches nothing.
    """
    _require_alike(tuned, base)
    whole = matching(also, named_modules(base), "--also") if also else []
    inside = tuple(f"{module}." for module in whole)
    layers = {ours: theirs for ours, theirs in linears(base).items() if not f"{ours}.".startswith(inside)}
    if not layers:
        what = "no matrix of the blocks is left to be taken apart"
        raise RecipeError(what, where="--also", do="Carry fewer modules whole.")
    largest = max(min(_matrix(base, name).shape) for name in layers)
    if rank > largest:
        raise RecipeError(f"rank {rank} is larger than every matrix's", where="--rank", do=f"The largest is {largest}.")
    parts: dict[str, _Parts] = {}
    for number, name in enumerate(layers):
        turned = _matrix(tuned, name) - _matrix(base, name)
        if turned.count_nonzero():
            parts[name] = _decomposed(turned, rank)
        heard(number + 1, len(layers))
    if not parts:
        what = "the matrices of the two models do not differ, so there is nothing to take apart"
        raise CheckpointError(what, where="--delta-from", do="Give the fine-tune and what it was tuned from.")
    ranks = [*(2**k for k in range(rank.bit_length()) if 2**k < rank), rank]
    named = {layers[name]: found for name, found in parts.items()}
    attached = _attached(base, tuned, parts, rank, whole)
    return Difference(
        attached,
        tuple(_error(named, r, [found.error(r) for found in named.values()]) for r in ranks),
        _error(named, largest, [found.lost for found in named.values()]),
        _left_out(tuned, base, {f"{name}.weight" for name in parts}, inside),
    )


def _require_alike(tuned: SequenceModel, base: SequenceModel) -> None:
    kinds = tuned.config.model_type, base.config.model_type
    if kinds[0] != kinds[1]:
        what = f"the fine-tune is of type '{kinds[0]}', and the base of type '{kinds[1]}'"
        raise CheckpointError(what, where="--delta-from", do="Give what it was tuned from.")
    ours, theirs = (
        {hub: model.get_parameter(name).shape for name, hub in model.hub_names().items()} for model in (tuned, base)
    )
    for name in [*ours, *theirs]:
        if ours.get(name) != theirs.get(name):
            sizes = [" x ".join(map(str, found[name])) if name in found else "not there" for found in (ours, theirs)]
            what = f"'{name}' is {sizes[0]} in the fine-tune and {sizes[1]} in the base"
            raise CheckpointError(what, where="--delta-from", do="Give what it was tuned from.")


def _matrix(model: SequenceModel, layer: str) -> Float[Tensor, "O I"]:
    return matrix_of(model.get_submodule(layer)).detach()


def _decomposed(matrix: Float[Tensor, "O I"], rank: int) -> _Parts:
    exact = matrix.double() if matrix.numel() <= _SMALL else matrix
    if torch.accelerator.is_available():
        exact = exact.to(torch.accelerator.current_accelerator())
    left, values, right = torch.linalg.svd(exact, full_matrices=False)
    scaled = left * values
    lost = float((exact - scaled @ right).double().square().sum())
    return _Parts(scaled[:, :rank].cpu(), right[:rank].cpu(), values.double().cpu(), lost)


def _error(parts: Mapping[str, _Parts], rank: int, lost: Sequence[float]) -> RankError:
    shares = {name: math.sqrt(part / found.square) for (name, found), part in zip(parts.items(), lost, strict=True)}
    worst = max(shares, key=shares.__getitem__)
    overall = math.sqrt(math.fsum(lost) / math.fsum(found.square for found in parts.values()))
    return RankError(rank, overall, shares[worst], worst)


@torch.no_grad()
def _attached(
    base: SequenceModel, tuned: SequenceModel, parts: Mapping[str, _Parts], rank: int, whole: Sequence[str]
) -> LowRankLayers:
    smaller: dict[str, Any] = {name: len(found.A) for name, found in parts.items() if len(found.A) < rank}
    adapter = LoRA(
        rank=rank, alpha=rank, targets=tuple(parts), ranks=smaller, alphas=dict(smaller), also_train=tuple(whole)
    )
    attached = adapter.attach(base)
    for name, found in parts.items():
        layer = attached.layer(name)
        layer.A.copy_(found.A)
        layer.B.copy_(found.B)
    for module in attached.also:
        for name, parameter in base.get_submodule(module).named_parameters():
            parameter.copy_(tuned.get_parameter(f"{module}.{name}"))
    return attached


def _left_out(tuned: SequenceModel, base: SequenceModel, taken: set[str], inside: tuple[str, ...]) -> dict[str, float]:
    found = {}
    for name, hub in base.hub_names().items():
        a, b = tuned.get_parameter(name).detach(), base.get_parameter(name).detach()
        if name not in taken and not name.startswith(inside) and not torch.equal(a, b):
            found[hub] = float((a - b).norm() / b.norm().clamp(min=torch.finfo(b.dtype).tiny))
    return found
