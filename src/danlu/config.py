"""What a recipe is made of: frozen, validated, documented beside the class it configures."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A noun of the recipe or a part of one; its fields are what the recipe may say.

    Frozen, and closed: a key that is not a field is an error. A string below a field documents it, in Python as in
    `danlu recipe NAME`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, arbitrary_types_allowed=True)
