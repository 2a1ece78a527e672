"""What of a recipe may change when a run is taken up again, and what that means.

Every field has a rule, the first that matches in one table. What changes no result, or is a wish about this session, is
free; what bends the curve from here on but can be meant is allowed, and told; what the checkpoint's weights, averages
or position in the data depend on is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, TypeAlias

from danlu.errors import RecipeError
from danlu.registry import lookup

Freedom: TypeAlias = Literal["free", "warned", "refused"]
_LONGEST = 60
"""Letters of a value that a sentence shows."""
_ABSENT = object()


@dataclass(frozen=True)
class Rule:
    """What a change of some fields means.

    Attributes:
        pattern: dotted names, with ``*`` for any part of them.
        kind: whether it is free, told, or refused.
        told: what follows from it.
        rate: whether it moves the learning rate, of which is then told more.
    """

    pattern: str
    kind: Freedom
    told: str = ""
    rate: bool = False


_WEIGHTS = "the checkpoint's weights are of that model"
_RANDOM = "everything random follows from it"
_DATA = "how far the run has come is counted in samples of that data"
_COST = "a matter of speed and memory, which changes no result but by rounding"

RULES: tuple[Rule, ...] = (
    Rule(
        "model.path", "warned", "its settings and tokenizer are to be those of then; the weights are the checkpoint's"
    ),
    Rule(
        "model.policy.path",
        "warned",
        "its settings and tokenizer are to be those of then; the weights are the checkpoint's",
    ),
    Rule("model.reference.path", "warned", "its weights are to be those of then, which is compared"),
    Rule("model.reference*", "refused", "what the policy is compared with is another"),
    Rule("model*", "refused", _WEIGHTS),
    Rule("method.name", "refused", "another method is another run"),
    Rule("method.reference", "free", "what is asked is the same, if not to the last bit"),
    Rule("method*", "warned", "the loss is another one from here on, not to be compared with the one before"),
    Rule("adapter*", "refused", "the checkpoint's weights are of that adapter"),
    # data: what decides the samples and their order is fixed, what only says how they come is not
    Rule("data.workers", "free", "a matter of speed"),
    Rule("data.timeout", "free", "a matter of patience"),
    Rule("data.cache", "free", "a matter of speed"),
    Rule("data.quarantine", "free", "rows that are set aside would have stopped the run"),
    Rule("data.step_samples", "warned", "updates are larger or smaller from here on"),
    Rule("data.step_tokens", "warned", "updates are larger or smaller from here on"),
    Rule("data.step_rows", "warned", "updates are larger or smaller from here on"),
    Rule("data.held_out_samples", "warned", "held-out figures before and after are of other samples"),
    Rule("data.train.*.weight", "warned", "samples are drawn in other proportions from here on"),
    Rule("data.train.*.epochs", "warned", "the part ends sooner or later"),
    Rule("data.train", "warned", "its content is to be that of then, which is compared"),
    Rule("data.env_steps", "warned", "the run, and what changes over it, is longer or shorter from here on"),
    Rule("data.eval_episodes", "warned", "returns before and after are of other episodes"),
    Rule("data.eval_steps", "warned", "returns before and after are of episodes of another length"),
    Rule("data.record", "free", "what is shown changes no result"),
    Rule("data*", "refused", _DATA),
    # optimizer: its averages are of one optimiser; how it uses them may change
    Rule("optimizer.name", "refused", "the checkpoint's averages are of that optimiser"),
    Rule("optimizer.lr", "warned", "it holds from the next update on", rate=True),
    Rule("optimizer.schedule*", "warned", "it holds from the next update on", rate=True),
    Rule("optimizer.clip_norm", "warned", "it holds from the next update on"),
    Rule("optimizer*", "warned", "averages that were made with the old value are gone on with"),
    # run: how long, how often, where and how fast is free; what is random, and where it is written, is not
    Rule("run.seed", "refused", _RANDOM),
    Rule("run.out", "refused", "a run stays in its directory"),
    Rule("run.steps", "free", "the schedule ends with the run, so its horizon moves", rate=True),
    Rule("run.epochs", "free", "the schedule ends with the run, so its horizon moves", rate=True),
    Rule("run.precision", "warned", "products are rounded otherwise from here on"),
    Rule("run.device", "free", "results may differ in their last bits"),
    Rule("run.threads", "free", "results may differ in their last bits"),
    Rule("run.compile", "free", "results may differ in their last bits"),
    Rule("run.parallel", "free", "results may differ in their last bits"),
    Rule("run.context_parallel", "free", "results may differ in their last bits"),
    Rule("run.recompute", "free", _COST),
    Rule("run.pack_tokens", "free", _COST),
    Rule("run.pack_rows", "free", _COST),
    Rule("run.eval_every", "free", "a matter of what is measured when"),
    Rule("run.checkpoint_every", "free", "a matter of what is kept"),
    Rule("run.keep_checkpoints", "free", "a matter of what is kept"),
    Rule("run.prompts", "free", "a matter of what is shown"),
    Rule("run.prompt_tokens", "free", "a matter of what is shown"),
    Rule("run.loggers", "free", "a matter of what is shown"),
    Rule("run.max_time", "free", "it holds for this session"),
    Rule("run.guards*", "free", "guards are as this session wants them"),
    Rule("*", "refused", "nothing says that it may"),
)
"""Read from top to bottom; the first that matches holds."""


@dataclass(frozen=True)
class Change:
    """A field that is not as it was.

    Attributes:
        key: its dotted name; an item of a list by its number.
        before: what it was; None also when it was not there.
        after: what it is to be.
        kind: whether that is free, told, or refused.
        sentence: what follows from it.
    """

    key: str
    before: Any
    after: Any
    kind: Freedom
    sentence: str

    @property
    def shown(self) -> str:
        """The field with both values."""
        return f"{self.key} ({_shown(self.before)} -> {_shown(self.after)})"


def changes(
    before: Mapping[str, Any], after: Mapping[str, Any], *, step: int | None = None, epochs: float = 0.0
) -> list[Change]:
    """The fields in which two recipes differ, in the order of the first.

    Args:
        before: what the run was, as `dump_recipe` gives it.
        after: what it is to be.
        step: updates done, if known; then of changes to the learning rate its next value is told, old and new.
        epochs: passes over the data by then.
    """
    found, told = [], False
    rates = tuple(None if step is None else _rate(recipe, step, epochs) for recipe in (before, after))
    for key, old, new in _differences(before, after):
        rule = rule_of(key)
        sentence = f"{key} is {_shown(new)} from here on, and was {_shown(old)}: {rule.told}"
        if rule.rate and not told and step is not None and None not in rates and rates[0] != rates[1]:
            by = " by the old horizon" if key in ("run.steps", "run.epochs") else ""
            about = "about " if epochs else ""  # by what was read when the checkpoint was written
            sentence += f"; the learning rate of step {step + 1} was {about}{rates[0]:.4g}{by} and is {rates[1]:.4g}"
            told = True
        found.append(Change(key, old, new, rule.kind, sentence))
    return found


def refuse_or_tell(found: Sequence[Change], where: str | Path | None = None) -> list[str]:
    """The sentences of changes that may be.

    Args:
        found: what `changes` gives.
        where: the run.

    Raises:
        RecipeError: naming all that may not be.
    """
    refused = [change.shown for change in found if change.kind == "refused"]
    if refused:
        what = f"cannot be changed in a run that has begun: {', '.join(refused)}"
        raise RecipeError(what, where=where, do="Start a new run with run.out=...")
    return [change.sentence for change in found]


def rule_of(key: str) -> Rule:
    """The rule of a dotted name.

    Example:
        >>> rule_of("model.hidden_size").kind, rule_of("run.steps").kind, rule_of("optimizer.betas").kind
        ('refused', 'free', 'warned')
    """
    return next(rule for rule in RULES if fnmatchcase(key, rule.pattern))


def _differences(before: Any, after: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, old, new) of what is not equal; of a part that has another name, only that."""
    if before == after:
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        if before.get("name") != after.get("name"):
            yield f"{key}.name", _name(before), _name(after)
            return
        for name in [*before, *(name for name in after if name not in before)]:
            below = f"{key}.{name}" if key else str(name)
            yield from _differences(before.get(name, _ABSENT), after.get(name, _ABSENT), below)
    elif _are_parts(before) and _are_parts(after) and len(before) == len(after):
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from _differences(old, new, f"{key}.{number}")
    else:
        yield key, None if before is _ABSENT else before, None if after is _ABSENT else after


def _are_parts(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value)


def _name(part: Mapping[str, Any]) -> Any:
    return part.get("name", part.get("path"))


def _rate(recipe: Mapping[str, Any], step: int, epochs: float) -> float | None:
    """The learning rate of the next update, as the loop takes it; None where the recipe does not tell."""
    bounds = ((step + 1, recipe["run"].get("steps")), (epochs, recipe["run"].get("epochs")))
    shares = [done / bound for done, bound in bounds if bound is not None]
    schedule, lr = recipe["optimizer"].get("schedule"), recipe["optimizer"].get("lr")
    if not shares or not isinstance(schedule, Mapping) or lr is None:
        return None
    fields = {name: value for name, value in schedule.items() if name != "name"}
    return float(lr * lookup("schedule", schedule["name"])(**fields).factor(min(1.0, max(shares))))


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
