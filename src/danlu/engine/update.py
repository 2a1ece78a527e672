"""One update, and one measurement: where sums become averages, once.

An update goes: count what its terms are divided by, over all its groups; cut the groups into packs; run forward and
backward pack by pack, each term's sum over its count; clip; step. So the update does not depend on how it was cut up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from danlu.contracts import Batch, Method, SequenceModel
from danlu.data import pack
from danlu.errors import RunError
from danlu.random import fold, token_keys


@dataclass(frozen=True)
class Updater:
    """Moves the weights by one step's groups, and measures without moving them.

    Attributes:
        models: by role; the method's first role is trained.
        method: how it learns.
        optimizer: moves the weights.
        device: where.
        pack_tokens: tokens that go through at once; changes no result.
        clip_norm: the longest gradient, or None.
        seed: everything random follows from it.
    """

    models: Mapping[str, SequenceModel]
    method: Method
    optimizer: torch.optim.Optimizer
    device: torch.device
    pack_tokens: int
    clip_norm: float | None
    seed: int

    @property
    def policy(self) -> SequenceModel:
        """The model that is trained."""
        return self.models[self.method.roles[0]]

    def gradient(self, groups: Sequence[Batch], step: int) -> dict[str, float]:
        """Leave in every parameter the gradient of the step's loss; give what was measured on the way.

        Returns:
            loss, the method's metrics, and the numbers of packs and of matrix-product operations.
        """
        counts = _sum(map(self.method.counts, groups))
        key = fold(self.seed, step)
        self.policy.train()
        self.optimizer.zero_grad(set_to_none=True)
        sums, flops, packs = _Sums(), 0, 0
        for batch in self._packs(groups):
            outcome = self.method.loss(self.models, _keyed(batch, key))
            if empty := [name for name in outcome.losses if not counts[name]]:
                raise RunError(f"step {step + 1} has nothing to learn from: its count of '{empty[0]}' is 0")
            loss = torch.stack([value / counts[name] for name, value in outcome.losses.items()]).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            sums.add({**outcome.metrics, "loss": loss})
            flops += 3 * self.policy.flops(batch.packed, len(batch.targets))
            packs += 1
        for parameter in self.policy.parameters():
            if parameter.grad is not None and parameter.grad.is_sparse:  # a table that was looked up, and no head's
                parameter.grad = parameter.grad.to_dense()
        averages = self.method.summarize(sums.over({**counts, "loss": 1.0}))
        return {**averages, "packs": packs, "flops": flops}

    def clip(self) -> float:
        """Scale the gradient down where it is too long; its norm before that."""
        gradients = [p.grad for p in self.policy.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        length = float(norm)
        if self.clip_norm is not None and length > self.clip_norm:
            nn.utils.clip_grads_with_norm_(self.policy.parameters(), self.clip_norm, norm)
        return length

    def move(self, lr: float) -> None:
        """Take the step."""
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = lr
        self.optimizer.step()

    @torch.inference_mode()
    def measure(self, groups: Iterable[Batch]) -> dict[str, float]:
        """The loss and the method's metrics over all these groups, nothing random and nothing moved."""
        self.policy.eval()
        sums, counts = _Sums(), Counter[str]()
        waiting = iter(groups)
        while some := list(islice(waiting, _MEASURED_TOGETHER)):
            for batch in self._packs(some):
                outcome = self.method.loss(self.models, batch)
                sums.add({**outcome.metrics, **{f"loss.{name}": value for name, value in outcome.losses.items()}})
            counts += _sum(map(self.method.counts, some))
        terms = {f"loss.{name}": count for name, count in counts.items()}
        averages = sums.over({**counts, **terms})
        loss = sum(averages.pop(name) for name in terms if name in averages)
        return self.method.summarize({"loss": loss, **averages})

    def _packs(self, groups: Sequence[Batch]) -> Iterator[Batch]:
        """The groups as few packs, on the device."""
        for members in pack([len(group) for group in groups], self.pack_tokens):
            yield Batch.join([groups[i] for i in members]).to(self.device)


_MEASURED_TOGETHER = 1024
"""Groups that are packed at a time while measuring."""


class _Sums:
    """Sums by name, kept on the device until they are asked for, so that no pack waits for another."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, terms: Mapping[str, Tensor]) -> None:
        for name, value in terms.items():
            term = value.detach().double() if value.device.type == "cpu" else value.detach().float()
            self._sums[name] = self._sums[name] + term if name in self._sums else term

    def over(self, counts: Mapping[str, float]) -> dict[str, float]:
        """Each sum over the count of its name, where that is not 0."""
        return {name: float(value) / counts[name] for name, value in self._sums.items() if counts.get(name)}


def _sum(each: Iterable[Mapping[str, Any]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for counts in each:
        total.update(counts)
    return total


def _keyed(batch: Batch, key: int) -> Batch:
    """The batch with a random key for every row."""
    packed = batch.packed
    keys = token_keys(key, packed.sample[packed.segment_of_row], packed.offsets.cpu())
    return replace(batch, packed=replace(packed, keys=keys.to(packed.tokens.device)))
