"""Which samples make one update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int64

from danlu.data.samples import AnySample
from danlu.data.stream import Samples
from danlu.errors import RecipeError


class DataSource:
    """Draws samples a step at a time.

    A step is `step_samples` samples; or, in order, as many as have at most `step_tokens` targets together, and at least
    one. A pass over the data follows another without a seam, so a step may straddle them.
    """

    def __init__(self, samples: Samples, *, step_samples: int | None = None, step_tokens: int | None = None) -> None:
        """Begin at the next sample.

        Args:
            samples: what to draw from.
            step_samples: samples of a step; this or `step_tokens`.
            step_tokens: targets a step may have.

        Raises:
            RecipeError: when not exactly one of `step_samples` and `step_tokens` is given.
        """
        if (step_samples is None) == (step_tokens is None):
            raise RecipeError("a step is so many samples or so many tokens", do="Set step_samples or step_tokens.")
        self._samples = samples
        self._step_samples = step_samples
        self._step_tokens = step_tokens

    @property
    def exhausted(self) -> bool:
        """Whether there are no more samples."""
        return self._samples.exhausted

    @property
    def epochs(self) -> float:
        """Passes over the data so far, the unfinished one by its share."""
        return self._samples.epochs

    @property
    def lengths(self) -> Int64[np.ndarray, " S"]:
        """The targets of the samples that are at hand: of small data all of them."""
        return self._samples.lengths

    def draw(self) -> list[AnySample]:
        """The samples of the next step; fewer at the end of the last pass, and none after it."""
        step: list[AnySample] = []
        tokens = 0
        while len(step) != self._step_samples and not self._samples.exhausted:
            tokens += self._samples.peek().num_targets
            if step and self._step_tokens is not None and tokens > self._step_tokens:
                break
            step.append(self._samples.take())
        return step

    def state_dict(self) -> dict[str, Any]:
        """What was consumed so far, and of what, as plain JSON."""
        return self._samples.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where a state was taken: the next sample drawn is the one that came next then.

        Raises:
            DataError: when the state is of other data or another order of them.
            CheckpointError: when it is not a state of these samples.
        """
        self._samples.load_state_dict(state)
