"""How likely a model finds given tokens, one by one: packed, in passes that carry no gradient."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from danlu.batch import Batch
from danlu.contracts import SequenceModel
from danlu.data import pack
from danlu.generate.generator import evaluating
from danlu.packed import Targets
from danlu.parts.cross_entropy import chunk_rows
from danlu.parts.readout import Head, Logits, Readout

_PACKED_TOGETHER = 1024
"""Groups that are put into packs at a time."""


@dataclass(frozen=True, eq=False)
class Score:
    """What a model makes of a group's targets, each on its own: sums over them do not depend on the packs.

    Attributes:
        log_probs: in nats.
        greedy: whether the target is the most likely token.
    """

    log_probs: Float[Tensor, " M"]
    greedy: Bool[Tensor, " M"]


@dataclass(frozen=True)
class Scores(Readout):
    """log p of each target, and whether it is the most likely token; a chunk of rows at a time."""

    targets: Targets

    def read(self, hidden: Float[Tensor, "T D"], head: Head) -> Score:
        """The score."""
        targets, step = self.targets, chunk_rows(len(head.weight), torch.float32)
        log_probs, greedy = [hidden.new_zeros(0, dtype=torch.float64)], [hidden.new_zeros(0, dtype=torch.bool)]
        for rows, tokens in zip(targets.rows.split(step), targets.tokens.split(step), strict=True):
            logits = Logits(rows).read(hidden, head)
            logits = logits if logits.dtype == torch.float64 else logits.float()
            chosen = logits.gather(1, tokens[:, None]).squeeze(1)
            log_probs.append((chosen - logits.logsumexp(1)).double())
            greedy.append(logits.argmax(1) == tokens)
        return Score(torch.cat(log_probs), torch.cat(greedy))


def score(model: SequenceModel, groups: Iterable[Batch], pack_tokens: int) -> Iterator[Score]:
    """Each group's score, in order.

    Args:
        model: what is asked.
        groups: forests with their targets.
        pack_tokens: tokens that go through at once, a longer group alone: a matter of memory, which changes no result.
    """
    waiting = iter(groups)
    while some := list(islice(waiting, _PACKED_TOGETHER)):
        yield from _score(model, some, pack_tokens)


def _score(model: SequenceModel, groups: Sequence[Batch], pack_tokens: int) -> list[Score]:
    device = next(model.parameters()).device
    lengths = [len(group) for group in groups]
    found: dict[int, Score] = {}
    for members in pack(lengths, max(pack_tokens, *lengths)):
        batch = Batch.join([groups[i] for i in members]).to(device)
        with evaluating(model):
            (scored,) = model(batch.packed, [Scores(batch.targets)])
        sizes = [len(groups[i].targets) for i in members]
        parts = zip(scored.log_probs.cpu().split(sizes), scored.greedy.cpu().split(sizes), strict=True)
        found.update(zip(members, (Score(*part) for part in parts), strict=True))
    return [found[i] for i in range(len(groups))]
