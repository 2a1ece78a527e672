"""What a recipe may say of guards: `run.guards`."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import Field

from danlu.config import Config

NonFinite: TypeAlias = Literal["stop", "skip", "rollback"]
"""What becomes of an update whose loss or gradient is not finite."""
SpikePolicy: TypeAlias = Literal["ignore", "warn", "skip", "rollback"]
"""What becomes of an update whose loss is far above what is usual."""


class GuardConfig(Config):
    """What is watched while it runs, and what is done about it."""

    nonfinite: NonFinite = "stop"
    """An update whose loss or gradient is not finite never moves a weight: `stop` ends the run with the sample and the
    layer named, `skip` goes on with the next samples, `rollback` does so from the last checkpoint."""
    spike: SpikePolicy = "warn"
    """An update whose loss is far above what is usual: `ignore` it, `warn`, `skip` it, or `rollback` to the last
    checkpoint and go on with the samples that come next."""
    spike_window: int = Field(128, ge=16)
    """The last so many losses tell what is usual, once a part of them is there."""
    spike_threshold: float = Field(8.0, gt=0)
    """A loss is a spike this many scaled median deviations above their median; a normal curve's deviation is one."""
    most_skips: int = Field(10, ge=1)
    """Updates that may be skipped one after another, or rolled back from at one place; then the run stops."""
    unmoved_after: int | None = Field(10, ge=1)
    """Updates after which every trained parameter must have moved, or be named; null does not look."""
    same_weights: bool = True
    """Compare the weights of ranks that each hold all of them, to the bit, whenever a checkpoint is written."""
