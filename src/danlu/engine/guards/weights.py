"""Guards of the weights: that some are trained, that those move, that ranks hold the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from danlu.engine.guards.words import listed
from danlu.engine.held import held
from danlu.engine.ranks import ALONE, Ranks
from danlu.errors import RunError, UnsupportedError
from danlu.fingerprint import fingerprints as of_tensors
from danlu.fingerprint import total


def trainable(model: nn.Module) -> int:
    """How many numbers are trained.

    Raises:
        UnsupportedError: when it is none: a run would change nothing.
    """
    number = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not number:
        frozen = sum(1 for _ in model.parameters())
        what = f"nothing would be trained: all {frozen} parameters of the model are frozen"
        raise UnsupportedError(what, where="model", do="Let at least one of them require a gradient.")
    return number


def fingerprints(parameters: Iterable[Tensor]) -> list[int]:
    """Each parameter's `danlu.fingerprint`; of one that is sharded, this rank's part's."""
    return of_tensors(held(parameter) for parameter in parameters)


class Motion:
    """Sees whether every trained parameter moves.

    Args:
        model: what is trained.
        after: updates after which each must have moved.
        ranks: the processes of the run; a parameter has moved when it has on any of them.
    """

    def __init__(self, model: nn.Module, *, after: int, ranks: Ranks = ALONE) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._after, self._left, self._ranks = after, after, ranks
        self._start = fingerprints(self._parameters.values())

    def note(self) -> str | None:
        """To be told of every update when it is taken, its gradient still there; once a sentence, if one is due.

        All ranks are told of the same updates.
        """
        self._left -= 1
        return self._look() if self._left == 0 else None

    def _look(self) -> str | None:
        now = fingerprints(self._parameters.values())
        moved = [a != b for a, b in zip(self._start, now, strict=True)]
        moved = [any(anywhere) for anywhere in zip(*self._ranks.gather(moved), strict=True)]
        names = [name for name, has in zip(self._parameters, moved, strict=True) if not has]
        if not names:
            return None
        pulled = [bool(g is not None and held(g).count_nonzero()) for g in (self._parameters[n].grad for n in names)]
        pulled = [any(anywhere) for anywhere in zip(*self._ranks.gather(pulled), strict=True)]
        return _unmoved(
            self._after,
            [name for name, is_pulled in zip(names, pulled, strict=True) if not is_pulled],
            [name for name, is_pulled in zip(names, pulled, strict=True) if is_pulled],
        )


def _unmoved(after: int, idle: Sequence[str], pulled: Sequence[str]) -> str:
    why = [
        (idle, "no gradient comes to {}, so the loss does not depend on it"),
        (pulled, "a gradient comes to {}, and its update is lost in rounding or not applied"),
    ]
    told = "; ".join(text.format(listed(names)) for names, text in why if names)
    return f"trained parameters that have not moved after {after} updates: {told}"


def same_weights(model: nn.Module, ranks: Ranks) -> None:
    """See that ranks that each hold all weights hold the same, to the bit.

    Raises:
        RunError: on every rank, naming the first parameter that differs, and on which ranks.
    """
    if ranks.size == 1:
        return
    names = [name for name, _ in model.named_parameters()]
    mine = fingerprints(model.parameters())
    totals = ranks.gather(total(mine))
    if len(set(totals)) == 1:
        return
    for name, each in zip(names, zip(*ranks.gather(mine), strict=True), strict=True):
        usual, count = Counter(each).most_common(1)[0]
        if count < len(each):
            others = [rank for rank, value in enumerate(each) if value != usual]
            what = f"the ranks no longer hold the same weights: '{name}' differs on rank {listed(others, 8)}"
            raise RunError(what, do="The last checkpoint before this is whole; look at those ranks' machines.")
