"""What a recipe is made of: frozen, validated, documented beside the class it configures."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class Kind:
    """Marks a field that holds one of several exported classes, chosen by its public name.

    In a recipe such a field is ``{name: adamw, lr: 1e-3}``, or just ``adamw``.
    """

    kind: str


class Config(BaseModel):
    """A noun of the recipe or a part of one; its fields are what the recipe may say.

    Frozen, and closed: a key that is not a field is an error. A string below a field documents it, in Python as in
    `danlu recipe NAME`.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        arbitrary_types_allowed=True,
        allow_inf_nan=False,
    )
