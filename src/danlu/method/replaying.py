"""What the methods share that learn from steps drawn out of all that were taken."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from danlu.acting import Discounting


class Replaying(Discounting):
    """Learns from steps drawn out of all that are remembered, each as likely as another."""

    batch_size: int = Field(32, ge=1)
    """Steps, drawn out of all that are remembered, that an update is made of."""
    buffer_size: int = Field(1_000_000, ge=1)
    """Steps that are remembered."""
    start: int = Field(100, ge=1)
    """Steps that are taken before the first update."""

    @model_validator(mode="after")
    def _begins(self) -> Self:
        if self.start > self.buffer_size:
            raise ValueError(
                f"start ({self.start}) is more than buffer_size ({self.buffer_size}): it would never begin"
            )
        return self

    @property
    def remembers(self) -> int:
        """See `ActingMethod`."""
        return self.buffer_size
