"""Which sample, and which layer, made an update's loss or gradient not finite.

The update is computed again, with the same random keys: first pack by pack, then each sample of a bad pack alone, then
the first bad one of them with every layer watched. Several ranks go through the same passes, one share's samples at a
time beside the others' empty packs, so that also a model whose weights lie on all of them can be asked; the ranks of a
ring have the same share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from danlu.data import pack
from danlu.engine.guards.watch import finite, watching
from danlu.engine.guards.words import listed
from danlu.engine.held import held
from danlu.engine.update import Updater
from danlu.parts.compiled import is_compiling
from danlu.random import fold

Cause = Literal["parameter", "samples", "together", "unknown"]
Way = Literal["targets", "output", "loss", "backward", "gradient", "parameter"]


@dataclass(frozen=True)
class Trace:
    """Where something not finite comes from.

    Attributes:
        step: the update, the first being 1.
        cause: a parameter that was not finite before; samples, each by itself; samples only together; or unknown, when
            it does not happen again.
        samples: the ids of the samples that it is, in order.
        origins: where they come from.
        among: how many samples the update has.
        way: how it was seen of the first of them: in its targets' weights, a module's output, the loss alone, the way
            back through a module, the gradient of a module's output, or that of a parameter.
        layer: the name of the module or parameter; "" is the model itself: its head.
    """

    step: int
    cause: Cause
    samples: tuple[int, ...] = ()
    origins: tuple[str, ...] = ()
    among: int = 0
    way: Way | None = None
    layer: str | None = None

    @property
    def sentence(self) -> str:
        """What happened, and because of what."""
        step = f"the loss or gradient of step {self.step}"
        if self.cause == "parameter":
            return f"{step} is not finite because parameter '{self.layer}' was not before it"
        if self.cause == "unknown":
            return (
                f"{step} was not finite, and computed again it is: look at the machine's memory and heat, "
                "or for operations that are not deterministic"
            )
        names = self.origins or tuple(f"sample {sample}" for sample in self.samples)
        if self.cause == "together":
            return f"{step} is not finite, of no sample alone but of {listed(names)} together{self._place}"
        of = f"{len(self.samples)} of its {self.among} samples: {listed(names)}" if len(self.samples) > 1 else names[0]
        return f"{step} is not finite because of {of}{self._place}"

    @property
    def _place(self) -> str:
        named = f"'{self.layer}'" if self.layer else "the model's head"
        texts: dict[Way | None, str] = {
            None: "no layer shows it when each is computed for itself",
            "targets": "the weights of the targets are not finite",
            "output": f"the first output that is not finite is that of {named}",
            "loss": "every layer's output is finite, and the loss is not",
            "backward": f"the gradient stops being finite on its way back through {named}",
            "gradient": f"the first gradient that is not finite is that of the output of {named}",
            "parameter": f"the gradient of parameter {named} is not finite, or too long for its norm to be",
        }
        several = self.cause == "samples" and len(self.samples) > 1
        return f"; {'of the first of them, ' if several else ''}{texts[self.way]}"


def trace_nonfinite(learner: Updater, groups: Sequence[Any], step: int) -> Trace:
    """Find what made an update's loss or gradient not finite; no weight is changed, and gradients are cleared.

    All ranks call this, and get the same answer.

    Args:
        learner: what made the update, its weights as they were before it.
        groups: the update's groups, of several ranks this one's.
        step: as `Updater.gradient` was given it.
    """
    return _Tracer(learner, groups, step).trace()


class _Tracer:
    def __init__(self, learner: Updater, groups: Sequence[Any], step: int) -> None:
        self._learner, self._groups, self._step = learner, groups, step
        self._ranks, self._share = learner.parallel.ranks, learner.parallel.share
        self._policy = learner.models[learner.method.roles[0]]
        self._key = fold(learner.seed, step)
        self._counts: Counter[str] = Counter()
        self._estimates: Mapping[str, float] = {}
        for told in self._shares([learner.method.counts(group) for group in groups]):
            for counts in told:
                self._counts.update(counts)

    def trace(self) -> Trace:
        if (name := self._first(self._bad_parameter())) is not None:
            return Trace(self._step + 1, "parameter", way="parameter", layer=name)
        weighed = [n for n, group in enumerate(self._groups) if not finite(group.weights)]
        if any(self._ranks.gather(bool(weighed))):  # then so is what every sample's loss is divided by
            return self._trace("samples", weighed, "targets", None)
        self._policy.train()
        self._estimates = self._learner.estimates(self._groups, self._step)
        try:
            return self._search()
        finally:
            self._clear()

    def _search(self) -> Trace:
        packs = pack([len(group) for group in self._groups], self._learner.pack_tokens)
        bad = self._bad(packs)
        if not bad:
            return self._all_together(packs)
        mine = [[member] for share, number in bad if share == self._share for member in packs[number]]
        guilty = self._bad(mine)
        if guilty:
            return self._told("samples", mine, guilty)
        return self._told("together", packs, bad)

    def _bad(self, units: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
        """Which units of groups, each by its share and number there, are not finite alone; the same on every rank."""
        found = []
        for share, count in enumerate(self._shares(len(units))):
            for number in range(count):
                self._clear()
                loss = self._pass(units[number] if share == self._share else [])
                bad = not finite(loss) or self._bad_gradient() is not None
                if any(self._ranks.gather(bad)):
                    found.append((share, number))
        return found

    def _all_together(self, packs: Sequence[Sequence[int]]) -> Trace:
        """Of an update each of whose packs is finite."""
        self._clear()
        for number in range(max(self._ranks.gather(len(packs)))):
            self._pass(packs[number] if number < len(packs) else [])
        name = self._first(self._bad_gradient())
        if name is None:
            return Trace(self._step + 1, "unknown")
        return self._trace("together", range(len(self._groups)), "parameter", name)

    def _told(self, cause: Cause, units: Sequence[Sequence[int]], bad: Sequence[tuple[int, int]]) -> Trace:
        """What the first bad unit's layers show, with all that are bad."""
        share, first = bad[0]
        told = self._ranks.gather(self._watched(units[first] if share == self._share else []))
        ring = self._learner.parallel.ring
        own = min(told[share * ring :][:ring], key=lambda seen: _seen_first(*seen))
        way, layer, _ = next((seen for seen in (own, *told) if seen[0] is not None), (None, None, 0))
        mine = [member for owner, number in bad if owner == self._share for member in units[number]]
        return self._trace(cause, mine, way, layer)

    def _trace(self, cause: Cause, members: Sequence[int], way: Way | None, layer: str | None) -> Trace:
        own = [self._groups[member] for member in members]
        ids = [sample for group in own for sample in group.sample_ids]
        origins = [place for group in own for place in group.origin]
        every = self._shares([ids, origins, sum(group.num_samples for group in self._groups)])
        samples, places = (tuple(value for each in every for value in each[i]) for i in range(2))
        return Trace(self._step + 1, cause, samples, places, sum(each[2] for each in every), way, layer)

    def _watched(self, members: Sequence[int]) -> tuple[Way | None, str | None, int]:
        """How and where some groups are seen not to be finite, without compilation, and how early."""
        self._clear()
        with _uncompiled(), watching(self._learner.models) as watch:
            loss = self._pass(members)
        if watch.output is not None:
            return "output", *watch.output
        if not finite(loss):
            return "loss", None, 0
        if watch.backward is not None:
            return "backward", *watch.backward
        if watch.gradient is not None:
            return "gradient", *watch.gradient
        name = self._bad_gradient()
        return (None, None, 0) if name is None else ("parameter", name, 0)

    def _pass(self, members: Sequence[int]) -> Tensor:
        """The loss of some groups as one pack, its gradient added to what is there."""
        learner = self._learner
        joined = learner.method.join([self._groups[member] for member in members])
        batch = replace(joined.to(learner.device).keyed(self._key), estimates=self._estimates)
        losses = learner.part(learner.method.loss(learner.around, batch).losses)
        loss = torch.stack([value / self._counts[name] for name, value in losses.items()]).sum()
        loss.backward()
        return loss.detach()

    def _bad_gradient(self) -> str | None:
        """The parameter, the last in the model's order, whose gradient has no finite norm, as clipping takes it."""
        named = [(name, p.grad) for name, p in self._policy.named_parameters() if p.grad is not None]
        if not named:
            return None
        norms = torch.stack([_norm(gradient) for _, gradient in named])
        if bool(torch.isfinite(norms.norm())):
            return None
        worst = (~torch.isfinite(norms)).nonzero()
        return named[int(worst[-1]) if len(worst) else int(norms.argmax())][0]

    def _bad_parameter(self) -> str | None:
        several = len(self._learner.models) > 1
        for role, model in self._learner.models.items():
            named = dict(model.named_parameters())
            if not named:  # it is another as it is without its adapter
                continue
            names, values = list(named), named.values()
            sound = torch.stack([torch.isfinite(held(value.detach())).all() for value in values]).tolist()
            if not all(sound):
                name = names[sound.index(False)]
                return f"{role}.{name}" if several else name
        return None

    def _shares(self, value: Any) -> list[Any]:
        """What each share's ranks say of it, which is the same."""
        return self._ranks.gather(value)[:: self._learner.parallel.ring]

    def _first(self, name: str | None) -> str | None:
        """The name that the first rank with one gives."""
        return next((told for told in self._ranks.gather(name) if told is not None), None)

    def _clear(self) -> None:
        for parameter in self._policy.parameters():
            parameter.grad = None


def _seen_first(way: Way | None, _: str | None, order: int) -> tuple[int, int]:
    """In which order the ranks of a ring, each of which has some of the rows, come upon what is not finite."""
    ways = get_args(Way)
    return (len(ways) if way is None else ways.index(way), order)


def _norm(gradient: Tensor) -> Tensor:
    here = held(gradient)
    return (here.coalesce().values() if here.is_sparse else here).norm()


def _uncompiled() -> AbstractContextManager[Any]:
    """What is compiled has no modules inside to watch."""
    return torch.compiler.set_stance("force_eager") if is_compiling() else nullcontext()
