"""The loss on text that was not trained on, over the tokens that would be learned.

    loss = sum_i w_i nll_i / sum_i w_i,   perplexity = e^loss,   bits per byte = sum_i w_i nll_i / (bytes ln 2)

Every token's likelihood is summed on its own in double precision, so the numbers do not depend on the packs.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from torch import Tensor

from danlu.batch import Batch
from danlu.contracts import SequenceModel
from danlu.data.document import Document, Tokens
from danlu.data.tokenizer import Tokenizer
from danlu.errors import DataError
from danlu.evaluation.result import Result
from danlu.evaluation.score import Score, score
from danlu.method.sft import SFT

_MOST_NATS = 700.0
"""Beyond it a perplexity is no double any more."""


@dataclass(frozen=True)
class Piece:
    """A document's tokens, or some of them; a `danlu.batch.Sample`.

    Attributes:
        id: which document it is of.
        tokens: n + 1 ids.
        weights: how much each target counts.
        origin: where it comes from, "file:line".
        num_bytes: not used: bytes are counted by document.
    """

    id: int
    tokens: Int64[np.ndarray, " n+1"]
    weights: Float32[np.ndarray, " n"]
    origin: str
    num_bytes: float = 0.0


class HeldOut:
    """Measures the loss on documents as they come."""

    def __init__(
        self, tokenizer: Tokenizer, encode: Callable[[Document, str], Tokens], context: int | None = None
    ) -> None:
        """Make one.

        Args:
            tokenizer: the model's.
            encode: a document's tokens with their weights, as in training.
            context: the most targets of a piece.
        """
        self._tokenizer, self._encode, self._context = tokenizer, encode, context
        self._special = tokenizer.special_ids
        self.counts = Counter({"samples": 0, "targets": 0, "cut": 0, "nothing_learned": 0})
        self._num_bytes = 0
        self._waiting: deque[tuple[str, Tensor]] = deque()

    def measure(self, model: SequenceModel, examples: Iterable[tuple[str, Document]], pack_tokens: int) -> Result:
        """The loss on all documents, each given with its place; what has nothing to learn is counted.

        Raises:
            DataError: when that is all of them.
        """
        groups = (group for i, (origin, document) in enumerate(examples) for group in self._groups(i, document, origin))
        records = [self._record(scored) for scored in score(model, groups, pack_tokens)]
        weight, nll, correct = (math.fsum(r[name] for r in records) for name in ("weight", "nll", "correct"))
        if not weight:
            what = f"none of the {self.counts['nothing_learned']} samples has a token that is learned"
            raise DataError(what, where="data.eval", do="Choose other data.train_on or other data.")
        loss = nll / weight
        metrics = {
            "loss": loss,
            "perplexity": math.exp(loss) if loss < _MOST_NATS else math.inf,
            **({"bits_per_byte": nll / (self._num_bytes * math.log(2))} if self._num_bytes else {}),
            "token_accuracy": correct / weight,
        }
        return Result("loss", metrics, dict(self.counts), tuple(records))

    def _groups(self, number: int, document: Document, origin: str) -> Iterator[Batch]:
        """A document's pieces, those in which something is learned."""
        tokens = self._encode(document, origin)
        weights = np.ones(len(tokens.ids), np.float32) if tokens.weights is None else tokens.weights
        learned = np.flatnonzero(weights[1:]) + 1
        self.counts["nothing_learned" if not len(learned) else "samples"] += 1
        self.counts["targets"] += len(learned)
        text = tokens.ids[learned][~np.isin(tokens.ids[learned], self._special)]
        self._num_bytes += len(self._tokenizer.decode(text.tolist()).encode())
        targets = len(tokens.ids) - 1
        size = self._context or max(targets, 1)
        self.counts["cut"] += bool(len(learned)) and targets > size
        for start in range(0, targets, size):
            stop = min(start + size, targets)
            counted = weights[start + 1 : stop + 1]
            if counted.any():
                place = origin if targets <= size else f"{origin} tokens {start}-{stop}"
                group = SFT().group(Piece(number, tokens.ids[start : stop + 1], counted, place))
                self._waiting.append((place, group.targets.weights))
                yield group

    def _record(self, scored: Score) -> dict[str, Any]:
        origin, weights = self._waiting.popleft()
        counted = weights.double()
        nll, correct = -(counted * scored.log_probs).sum(), (counted * scored.greedy).sum()
        sums = {"weight": counted.sum(), "nll": nll, "correct": correct}
        return {"origin": origin, "targets": len(counted), **{name: float(value) for name, value in sums.items()}}
