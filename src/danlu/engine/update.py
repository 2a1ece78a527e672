"""One update, and one measurement: where sums become averages, once.

An update goes: count what its terms are divided by, over all its groups; cut the groups into packs; take what the loss
depends on as a whole, where a method asks for it; run forward and backward pack by pack, each term's sum over its
count; clip; step. So the update does not depend on how it was cut up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from itertools import chain, islice
from operator import add
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from danlu.contracts import LossMethod, Terms
from danlu.data import deal, pack
from danlu.engine.device import Device
from danlu.engine.guards.words import listed
from danlu.engine.held import held
from danlu.engine.learner import Learner, Measured
from danlu.engine.parallel import Parallel
from danlu.engine.work import passes
from danlu.errors import RunError
from danlu.random import fold


@dataclass(frozen=True)
class Updater(Learner):
    """Moves the weights by one step's samples, and measures without moving them.

    Attributes:
        models: by role; the method's first role is trained, the others are only asked.
        method: how it learns.
        optimizer: moves the weights.
        device: where.
        pack_tokens: tokens that go through at once; changes no result.
        clip_norm: the longest gradient, or None.
        seed: everything random follows from it.
        parallel: how the trained model lies over ranks.
    """

    models: Mapping[str, Any]
    method: LossMethod
    optimizer: torch.optim.Optimizer
    device: torch.device
    pack_tokens: int
    clip_norm: float | None
    seed: int
    parallel: Parallel = field(default_factory=Parallel)

    @property
    def policy(self) -> Any:
        """The model that is trained."""
        return self.models[self.method.roles[0]]

    @property
    def kept(self) -> dict[str, Tensor]:
        """What is trained; what is frozen is still where it came from."""
        return {name: parameter for name, parameter in self.policy.named_parameters() if parameter.requires_grad}

    @property
    def trained(self) -> list[nn.Parameter]:
        """What the optimiser moves."""
        return [p for p in self.policy.parameters() if p.requires_grad]

    def ready(self, device: Device) -> None:
        """Know how fast the device can be, which an update is compared with."""
        device.peak_flops(self.policy.compute_dtype)

    def facts(self, measured: Measured, seconds: float, device: Device) -> dict[str, Any]:
        """See `Learner`."""
        peak = device.peak_flops(self.policy.compute_dtype) * self.parallel.ranks.size
        return {
            "tokens": measured.tokens,
            "samples": measured.samples,
            "packs": measured.packs,
            "seconds": seconds,
            "tokens_per_second": measured.tokens / seconds,
            "mfu": measured.flops / seconds / peak,
            "packing_efficiency": measured.tokens / (measured.packs * self.pack_tokens),
        }

    def groups(self, samples: Sequence[Any]) -> list[Any]:
        """This rank's share of an update's samples as groups: shares cost about the same."""
        return self._dealt(self.method.matched(samples))

    def _dealt(self, samples: Sequence[Any]) -> list[Any]:
        if self.parallel.shares > 1:
            shares = deal([self.method.size(sample) for sample in samples], self.parallel.shares)
            samples = [samples[i] for i in shares[self.parallel.share]]
        return [self.method.group(sample) for sample in samples]

    def gradient(self, groups: Sequence[Any], step: int, told: Callable[[], Any] = lambda: None) -> Measured:
        """Leave in every parameter the gradient of the step's loss over all ranks.

        Args:
            groups: this rank's.
            step: updates done before.
            told: asked for what this rank has to say to the others, once its packs are through.

        Raises:
            RunError: when there is nothing to learn from.
        """
        packs = self._packed(groups)
        agreed = self._agree(groups, len(packs))
        counts, key = agreed.counts, fold(self.seed, step)
        models = self.around
        if not self.policy.training:
            self.policy.train()
        for parameter in self.trained:
            parameter.grad = None
        estimates, flops = self._estimated([(groups, packs, agreed)], key)
        sums, backward = _Sums(), self.passes_back()
        for number, batch in enumerate(self._turns(packs, groups, agreed.rounds)):
            self.parallel.begin_pack(self.policy, last=number == agreed.rounds - 1)
            outcome = self.method.loss(models, replace(batch.keyed(key), estimates=estimates))
            if empty := [name for name in outcome.losses if not counts[name]]:
                every = self.parallel.ranks.gather(self.places(groups))[:: self.parallel.ring]
                raise _nothing_to_learn(step + 1, empty[0], list(chain.from_iterable(every)))
            loss = reduce(add, [value / counts[name] for name, value in self.part(outcome.losses).items()])
            loss.backward()  # type: ignore[no-untyped-call]
            sums.add({**self.part(outcome.metrics), "loss": loss})
            flops += backward * self.method.flops(self.policy, batch) + self.forward_flops(batch)
        self.parallel.end_update(self.policy)
        reports = self.parallel.ranks.gather([sums.as_floats(), flops, told()])
        averages = _over(_sum(sums for sums, _, _ in reports), {**counts, "loss": 1.0})
        return Measured(
            metrics=self.method.summarize(averages),
            samples=agreed.samples,
            tokens=agreed.tokens,
            packs=agreed.packs,
            flops=sum(flops for _, flops, _ in reports[:: self.parallel.ring]),
            told=[told for _, _, told in reports],
        )

    def places(self, groups: Sequence[Any]) -> list[str]:
        """See `Learner`."""
        return [place for group in groups for place in group.origin]

    def blame(self, groups: Sequence[Any], step: int) -> str:
        """See `Learner`; it is computed again, with the same random keys."""
        from danlu.engine.guards.nonfinite import trace_nonfinite  # which computes what this file does

        return trace_nonfinite(self, groups, step).sentence

    def clip(self) -> float:
        """Scale the gradient down where it is too long; its norm before that."""
        parameters = self.trained
        norm = torch.linalg.vector_norm(self.parallel.norms(parameters))
        length = float(norm)
        if self.clip_norm is not None and length > self.clip_norm:
            gradients = [held(p.grad) for p in parameters if p.grad is not None]
            torch._foreach_mul_(gradients, self.clip_norm / (length + _LEAST))
        return length

    def move(self, lr: float) -> None:
        """Take the step."""
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = lr
        self.optimizer.step()

    def part(self, sums: Terms) -> Terms:
        """What this rank adds of a pack's sums: a share, where all ranks of a ring have the whole of them."""
        ranks = self.parallel.ring if self.method.by_sequence else 1
        return sums if ranks == 1 else {name: value / ranks for name, value in sums.items()}

    def passes_back(self) -> float:
        """The matrix products of a backward pass, in forward passes."""
        return passes(self.policy) - 1

    @property
    def around(self) -> Mapping[str, Any]:
        """The models as the method asks them."""
        return self.parallel.asked(self.models, values=self.method.by_sequence)

    @torch.no_grad()
    def measure(self, samples: Iterable[Any]) -> dict[str, float]:
        """The loss and the method's metrics over all these samples, nothing random and nothing moved."""
        models = self.around
        self.policy.eval()
        sums, counts, estimates = _Sums(), Counter[str](), dict[str, float]()
        chunks = self._chunks(samples)
        if self.method.estimating:
            chunks = list(chunks)
            estimates, _ = self._estimated(chunks, None)
        for groups, packs, agreed in chunks:
            for batch in self._turns(packs, groups, agreed.rounds):
                outcome = self.method.loss(models, replace(batch, estimates=estimates))
                losses = {f"loss.{name}": value for name, value in outcome.losses.items()}
                sums.add(self.part({**outcome.metrics, **losses}))
            counts += agreed.counts
        self.parallel.settle(self.policy)
        terms = {f"loss.{name}": count for name, count in counts.items()}
        averages = _over(_sum(self.parallel.ranks.gather(sums.as_floats())), {**counts, **terms})
        loss = sum(averages.pop(name) for name in terms if name in averages)
        return self.method.summarize({"loss": loss, **averages})

    def _chunks(self, samples: Iterable[Any]) -> Iterable[_Chunk]:
        """Samples to be measured, some at a time; matched with one another first where all of them are one estimate."""
        matched = self.method.matched
        if self.method.estimating:
            samples, matched = matched(list(samples)), _as_they_are
        waiting = iter(samples)
        while some := list(islice(waiting, _MEASURED_TOGETHER * self.parallel.shares)):
            groups = self._dealt(matched(some))
            packs = self._packed(groups)
            yield groups, packs, self._agree(groups, len(packs))

    def estimates(self, groups: Sequence[Any], step: int) -> dict[str, float]:
        """What a step's loss depends on as a whole, over all ranks; `gradient` takes it by itself."""
        packs = self._packed(groups)
        return self._estimated([(groups, packs, self._agree(groups, len(packs)))], fold(self.seed, step))[0]

    @torch.no_grad()
    def _estimated(self, chunks: Iterable[_Chunk], key: int | None) -> tuple[dict[str, float], float]:
        """The method's estimates, each over its count, and this rank's operations for them."""
        if not self.method.estimating:
            return {}, 0
        models, sums, counts, flops = self.around, _Sums(), Counter[str](), 0.0
        for groups, packs, agreed in chunks:
            for batch in self._turns(packs, groups, agreed.rounds):
                found = self.method.estimates(models, batch if key is None else batch.keyed(key))
                sums.add(self.part(found))
                flops += self.forward_flops(batch if batch.beside is None else batch.beside)
            counts += agreed.counts
        return _over(_sum(self.parallel.ranks.gather(sums.as_floats())), counts), flops

    def forward_flops(self, batch: Any) -> float:
        """Operations of asking every model once."""
        return sum(self.method.flops(model, batch) for model in self.models.values())

    def packs(self, groups: Sequence[Any]) -> Iterator[Any]:
        """Some groups as few packs, on the device."""
        packs = self._packed(groups)
        return self._turns(packs, groups, len(packs))

    def passes(self, groups: Sequence[Any]) -> Iterator[tuple[Sequence[int], Any]]:
        """The packs of this rank's groups, each with the numbers of those in it; as many as the rank with most has."""
        packs = self._packed(groups)
        rounds = max(self.parallel.ranks.gather(len(packs)))
        members = chain(packs, ([] for _ in range(rounds - len(packs))))
        return zip(members, self._turns(packs, groups, rounds), strict=True)

    def _packed(self, groups: Sequence[Any]) -> list[list[int]]:
        """Which groups go through together."""
        return pack([len(group) for group in groups], self.pack_tokens)

    def _agree(self, groups: Sequence[Any], packs: int) -> _Agreed:
        """What all ranks are about to do."""
        mine = [dict(_sum(map(self.method.counts, groups))), packs, *_size(groups)]
        told = self.parallel.ranks.gather(mine)[:: self.parallel.ring]  # the ranks of a ring have the same
        counts, each, samples, tokens = zip(*told, strict=True)
        return _Agreed(_sum(counts), max(each), sum(each), sum(samples), sum(tokens))

    def _turns(self, packs: Sequence[Sequence[int]], groups: Sequence[Any], rounds: int) -> Iterator[Any]:
        """This rank's packs on the device, and empty ones until all ranks have had as many."""
        for number in range(rounds):
            members = packs[number] if number < len(packs) else ()
            yield self.method.join([groups[i] for i in members]).to(self.device)


@dataclass(frozen=True)
class _Agreed:
    """What the terms are divided by, the packs of the rank that has most, and what goes through in all."""

    counts: Counter[str]
    rounds: int
    packs: int
    samples: int
    tokens: int


_Chunk: TypeAlias = tuple[Sequence[Any], Sequence[Sequence[int]], _Agreed]
"""Groups, which of them go through together, and what all ranks are about to do."""


def _as_they_are(samples: Sequence[Any]) -> Sequence[Any]:
    return samples


def _size(groups: Sequence[Any]) -> tuple[int, int]:
    return sum(group.num_samples for group in groups), sum(len(group) for group in groups)


def _nothing_to_learn(step: int, term: str, where: Sequence[str]) -> RunError:
    return RunError(
        f"step {step} has nothing to learn from: its count of '{term}' is 0 on samples {listed(where)}",
        do="Look at them with `danlu check`: every target of theirs is masked.",
    )


_MEASURED_TOGETHER = 1024
"""Samples of a rank that are packed at a time while measuring."""
_LEAST = 1e-6
"""Added to the norm that a gradient is divided by."""


class _Sums:
    """Sums by name, kept on the device until they are asked for, so that no pack waits for another."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, terms: Mapping[str, Tensor]) -> None:
        for name, value in terms.items():
            term = value.detach().double() if value.device.type == "cpu" else value.detach().float()
            self._sums[name] = self._sums[name] + term if name in self._sums else term

    def as_floats(self) -> dict[str, float]:
        """Each sum, once it is there."""
        return {name: float(value) for name, value in self._sums.items()}


def _over(sums: Mapping[str, float], counts: Mapping[str, float]) -> dict[str, float]:
    """Each sum over the count of its name, where that is not 0."""
    return {name: value / counts[name] for name, value in sums.items() if counts.get(name)}


def _sum(each: Iterable[Mapping[str, Any]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for counts in each:
        total.update(counts)
    return total
