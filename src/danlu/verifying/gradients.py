"""Checks of one update's gradient: it is the same however the samples go through."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from danlu.batch import Batch
from danlu.contracts import SequenceModel
from danlu.data import pack
from danlu.engine.recompute import Recomputed, recompute
from danlu.verifying.subject import STEP, Subject
from danlu.verifying.tolerances import NEGLIGIBLE, SAME_SUMS
from danlu.verifying.verdict import Inapplicable, Measured, check, size

Gradient: TypeAlias = Mapping[str, Tensor]
"""By parameter."""

_RECOMPUTED: tuple[Recomputed, ...] = ("selective", "full")


@check("packed equals one by one")
def packed_equals_one_by_one(subject: Subject) -> Measured:
    """The loss and every gradient of a pack are those of its samples, each alone."""
    together_loss, together = _by_hand(subject, [Batch.join(subject.groups)])
    alone_loss, alone = _by_hand(subject, subject.groups)
    of_loss = abs(together_loss - alone_loss) / max(abs(alone_loss), 1e-30)
    of_gradient, name = worst(together, alone)
    found = [
        (of_gradient, f"In a pack the gradient of '{name}' is another than of its samples alone."),
        (of_loss, f"In a pack the loss is {together_loss:.6g}, and {alone_loss:.6g} of its samples alone."),
    ]
    error, fault = max(found, key=lambda each: size(each[0]))
    what = f"loss and {len(alone)} gradients, {len(subject.groups)} samples of {subject.tokens:,} tokens"
    return Measured(what, error, SAME_SUMS, fault + subject.coupling)


@check("micro-batches, accumulation and order")
def micro_batches_and_order(subject: Subject) -> Measured:
    """The step's gradient does not depend on run.pack_tokens or on the order of the samples."""
    groups, lengths = list(subject.groups), [len(group) for group in subject.groups]
    expected = step_gradient(subject, groups, sum(lengths))
    found = [("", 0.0, "")]
    for budget in sorted({max(lengths), min(2 * max(lengths), sum(lengths))}):
        for order, turn in (("", 1), (" in reversed order", -1)):
            count = len(pack(lengths[::turn], budget))
            found.append((f"{count} packs{order}", *worst(step_gradient(subject, groups[::turn], budget), expected)))
    way, error, name = max(found, key=lambda each: size(each[1]))
    what = f"{len(expected)} gradients, {', '.join(each for each, _, _ in found[1:])}, beside 1 pack"
    return Measured(what, error, SAME_SUMS, f"In {way} the gradient of '{name}' is another.{subject.coupling}")


@check("recomputation changes nothing")
def recomputation(subject: Subject) -> Measured:
    """Gradients are the same where activations are made again in backward instead of kept."""
    if not list(subject.policy.blocks):
        raise Inapplicable("The model declares no blocks to recompute.")
    groups, tokens = list(subject.groups), subject.tokens
    expected = step_gradient(subject, groups, tokens)
    found = []
    for mode in _RECOMPUTED:
        policy = copy.deepcopy(subject.policy)
        recompute(policy, mode)
        found.append((*worst(step_gradient(subject, groups, tokens, policy), expected), mode))
    error, name, mode = max(found, key=lambda each: size(each[0]))
    what = f"{len(expected)} gradients, selective and full"
    return Measured(what, error, SAME_SUMS, f"With run.recompute={mode} the gradient of '{name}' is another.")


def step_gradient(
    subject: Subject, groups: Sequence[Batch], pack_tokens: int, policy: SequenceModel | None = None
) -> Gradient:
    """The gradient of an update by the engine itself.

    Args:
        subject: whose update.
        groups: its samples, in any order.
        pack_tokens: what goes through at once.
        policy: in place of the subject's.
    """
    updater = replace(subject.updater, pack_tokens=pack_tokens)
    if policy is not None:
        optimizer = subject.experiment.recipe.optimizer.build(policy)
        updater = replace(updater, models={**updater.models, subject.method.roles[0]: policy}, optimizer=optimizer)
    updater.gradient(groups, STEP)
    return _taken(updater.policy)


def _by_hand(subject: Subject, packs: Iterable[Batch]) -> tuple[float, Gradient]:
    """Loss and gradient of some packs, written out: each term's sum over its count over all of the subject's groups."""
    policy, method = subject.policy, subject.method
    counts: Counter[str] = Counter()
    for group in subject.groups:
        counts.update(method.counts(group))  # type: ignore[arg-type]  # a Counter of shares
    policy.train()
    policy.zero_grad(set_to_none=True)
    total, estimates = 0.0, subject.updater.estimates(subject.groups, STEP)
    for batch in packs:
        outcome = method.loss(subject.updater.models, replace(subject.keyed(batch), estimates=estimates))
        loss = torch.stack([value / counts[name] for name, value in outcome.losses.items()]).sum()
        loss.backward()
        total += float(loss.detach())
    return total, _taken(policy)


def _taken(model: nn.Module) -> Gradient:
    """The gradients in a model, which has none after that."""
    held = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return {name: gradient.to_dense() if gradient.is_sparse else gradient for name, gradient in held.items()}


def worst(found: Gradient, expected: Gradient) -> tuple[float, str]:
    """The largest error of any gradient, relative to its largest entry, and whose it is; an absent one is 0."""
    largest = max((float(gradient.abs().max()) for gradient in expected.values()), default=0.0)
    errors = [(0.0, "")]
    for name in {**expected, **found}:
        one, other = found.get(name), expected.get(name)
        scale = max(0.0 if other is None else float(other.abs().max()), NEGLIGIBLE * largest, 1e-30)
        errors.append((float(_difference(one, other).abs().max()) / scale, name))
    return max(errors, key=lambda each: size(each[0]))


def _difference(one: Tensor | None, other: Tensor | None) -> Tensor:
    if one is None or other is None:
        present = one if one is not None else other
        assert present is not None
        return present
    return one - other
