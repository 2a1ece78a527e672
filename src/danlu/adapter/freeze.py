"""Partial freezing: some of the model's own weights are trained, the others stay.

Chosen by pattern, by layer, or as BitFit does, biases alone. Below the lowest layer that is trained nothing goes
backward; what is frozen has neither a gradient nor averages. What comes out is a whole model.

References:
    Lee, Tang and Lin, 2019, "What would Elsa do? Freezing layers during transformer fine-tuning",
    https://arxiv.org/abs/1911.03090
    Ben Zaken, Ravfogel and Goldberg, 2021, "BitFit", https://arxiv.org/abs/2106.10199
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from danlu.adapter.adapted import Adapters
from danlu.adapter.contract import DEFAULT, Adapter, Attached
from danlu.adapter.targets import block_names, matching
from danlu.contracts import SequenceModel
from danlu.errors import RecipeError
from danlu.registry import export


@export("adapter", "freeze", source="Lee et al., 2019, https://arxiv.org/abs/1911.03090")
class Freeze(Adapter):
    """Only some of the model's own weights are trained."""

    beside: ClassVar[bool] = False

    targets: tuple[str, ...] = ("*",)
    """The parameters that are trained, by pattern: `*norm.weight`, `lm_head.weight`, `layers.3.*`."""
    layers: tuple[int, ...] | None = Field(None, min_length=1)
    """Of the blocks only these, counted from 0, below 0 from the end, and nothing outside the blocks."""
    biases_only: bool = False
    """Of all that only the biases (BitFit)."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.targets == ("*",) and self.layers is None and not self.biases_only:
            raise ValueError("nothing would be frozen: say what is trained with targets, layers or biases_only")
        return self

    def attach(self, model: SequenceModel, *, name: str = DEFAULT, seed: int = 0) -> Frozen:
        """See `Adapter`."""
        return Frozen(self, model, name, seed)


class Frozen(Attached):
    """A model of which a part is trained."""

    adapter: Freeze

    def __init__(self, adapter: Freeze, model: SequenceModel, name: str, seed: int) -> None:
        super().__init__(adapter, model, name, seed)
        candidates = dict(model.hub_names())
        if adapter.layers is not None:
            inside = tuple(f"{block}." for block in block_names(model, adapter.layers))
            candidates = {ours: theirs for ours, theirs in candidates.items() if ours.startswith(inside)}
        chosen = matching(adapter.targets, candidates, "targets")
        if adapter.biases_only:
            chosen = [parameter for parameter in chosen if parameter.endswith("bias")]
            if not chosen:
                raise RecipeError("what is to be trained has no biases", where="adapter.biases_only")
        for parameter in chosen:
            model.get_parameter(parameter).requires_grad_(True)
        Adapters.of(model).attached[name] = self

    @property
    def own(self) -> Mapping[str, str]:
        """See `Attached`: it has no parameters that are not the model's."""
        return {}

    def to_hub(self) -> dict[str, Any]:
        """See `Attached`: it is no file of its own."""
        return {}

    def merge(self) -> None:
        """See `Attached`: there is nothing to be done."""
