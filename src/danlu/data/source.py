"""Which samples make one update, and where among all of them a run is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Int64

from danlu.data.corpus import Corpus, Sample
from danlu.data.order import permutation
from danlu.errors import CheckpointError, DataError, RecipeError


@dataclass(frozen=True)
class Progress:
    """What a source has given out.

    Attributes:
        epoch: which pass over the corpus it is in.
        position: samples consumed of this pass.
        samples: samples consumed in all.
        tokens: targets consumed in all.
    """

    epoch: int = 0
    position: int = 0
    samples: int = 0
    tokens: int = 0


class CorpusSource:
    """Draws the samples of a corpus a step at a time, in an order that is a function of (seed, epoch).

    A step is `step_samples` samples; or, in order, as many as have at most `step_tokens` targets together, and at least
    one. An epoch follows another without a seam, so a step may straddle them.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        seed: int,
        step_samples: int | None = None,
        step_tokens: int | None = None,
        shuffle: bool = True,
        epochs: int | None = None,
    ) -> None:
        """Begin at the first sample.

        Args:
            corpus: what to draw from.
            seed: another seed gives another order.
            step_samples: samples of a step; this or `step_tokens`.
            step_tokens: targets a step may have.
            shuffle: false keeps the order of the files.
            epochs: passes over the corpus, after which there is nothing more; None is without end.

        Raises:
            RecipeError: when not exactly one of `step_samples` and `step_tokens` is given.
        """
        if (step_samples is None) == (step_tokens is None):
            raise RecipeError("a step is so many samples or so many tokens", do="Set step_samples or step_tokens.")
        self._corpus = corpus
        self._seed = seed
        self._step_samples = step_samples
        self._step_tokens = step_tokens
        self._shuffle = shuffle
        self._epochs = epochs
        self._order_epoch = -1
        self._order: Int64[np.ndarray, " S"] = np.arange(len(corpus))
        self.progress = Progress()

    @property
    def exhausted(self) -> bool:
        """Whether all epochs are consumed."""
        return self._epochs is not None and self.progress.epoch >= self._epochs

    def draw(self) -> list[Sample]:
        """The samples of the next step; fewer at the end of the last epoch, and none after it."""
        step: list[Sample] = []
        tokens = 0
        while not self.exhausted:
            index = self._next()
            tokens += int(self._corpus.lengths[index])
            if step and self._over(len(step) + 1, tokens):
                break
            step.append(self._corpus[index])
            self._advance(step[-1])
        return step

    def state_dict(self) -> dict[str, Any]:
        """What was consumed so far, and of what, as plain JSON."""
        return {**asdict(self.progress), **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where a state was taken: the next sample drawn is the one that came next then.

        Raises:
            DataError: when the state is of another corpus or another order of it.
            CheckpointError: when it is not a state of a source.
        """
        identity = self._identity()
        counts: list[Any] = [state.get(field.name) for field in fields(Progress)]
        if not identity.keys() <= state.keys() or not all(isinstance(n, int) and n >= 0 for n in counts):
            raise CheckpointError("the source's state is incomplete", do="Resume from another checkpoint.")
        for name, value in identity.items():
            if state[name] != value:
                what = f"the checkpoint's data is not this data: {name} was {state[name]} and is {value}"
                raise DataError(what, do="Give the data, tokenizer, context and seed of then, or start a new run.")
        progress = Progress(*counts)
        if progress.position >= len(self._corpus):
            what = f"the source's state is at sample {progress.position} of {len(self._corpus)}"
            raise CheckpointError(what, do="Resume from another checkpoint.")
        self.progress = progress

    def _identity(self) -> dict[str, Any]:
        return {"corpus": self._corpus.fingerprint, "seed": self._seed, "shuffle": self._shuffle}

    def _over(self, samples: int, tokens: int) -> bool:
        if self._step_samples is not None:
            return samples > self._step_samples
        return self._step_tokens is not None and tokens > self._step_tokens

    def _next(self) -> int:
        epoch = self.progress.epoch
        if self._shuffle and self._order_epoch != epoch:
            self._order = permutation(len(self._corpus), self._seed, epoch)
            self._order_epoch = epoch
        return int(self._order[self.progress.position])

    def _advance(self, sample: Sample) -> None:
        now = self.progress
        turn, position = divmod(now.position + 1, len(self._corpus))
        self.progress = Progress(now.epoch + turn, position, now.samples + 1, now.tokens + sample.num_targets)
