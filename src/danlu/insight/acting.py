"""What a report shows of a run that learned from acting: what came of it, what it cost, what the method measures."""

from __future__ import annotations

import numpy as np

from danlu.insight.acting_charts import estimate_chart, returns_chart
from danlu.insight.charts import Chart, metric_chart
from danlu.insight.curve import Curve
from danlu.insight.fit import Fit
from danlu.insight.page import Fact
from danlu.insight.progress import judge_error, judge_returns
from danlu.insight.record import Record, as_mapping, as_number
from danlu.units import count

_METRICS = {
    "policy_loss": ("Policy loss", "What moves the policy."),
    "actor_loss": ("Actor's loss", "What moves the policy."),
    "value_loss": ("Value loss", "How far what was expected is from what came."),
    "entropy": ("Entropy", "Of the policy, nats an action; it falls as the policy makes up its mind."),
    "kl": ("Divergence", "How far an update moved the policy, nats an action."),
    "value": ("Value", "What the agent expects, on the mean."),
    "reward": ("Reward", "A step, on the mean."),
    "changed": ("Policy changed", "Share of states whose action changed."),
    "improved": ("Policy improved", "1 where its step kept the bound and gained, 0 where it stayed."),
    "clipped": ("Clipped", "Share of actions whose probability ratio was out of bounds."),
    "clip": ("Bounds", "How far from 1 a probability ratio may be before it is out of bounds."),
    "explained_variance": ("Explained variance", "Share of the returns' variance that the values foresee; 1 is all."),
    "epsilon": ("Exploration", "The chance of an action at random."),
    "temperature": ("Temperature", "What a nat of entropy is worth."),
    "error": ("Error", "How far what was found is from what is sought."),
    "step_size": ("Step size", ""),
}
"""Metrics that are known, in the order they are drawn in."""
_LOGARITHMIC = {"error", "step_size"}
_ELSEWHERE = {
    *("step", "loss", "return", "estimate", "iterate", "root", "episodes", "episode_length"),
    *("env_steps", "total_env_steps"),
    *("seconds", "steps_per_second", "lr", "grad_norm", "memory_bytes", "mfu", "packing_efficiency"),
    *("tokens", "total_tokens", "tokens_per_second", "samples", "packs", "epochs"),
}
_MOST_OTHERS = 12
"""A method that records more is read from `metrics.jsonl`."""


def acted(record: Record) -> bool:
    """Whether the run learned from acting."""
    told = ("total_env_steps", "env_steps", "held_out_return", "estimate", "iterate")
    return record.last("world") is not None or any(len(record.curve(name)) for name in told)


def acting_facts(record: Record) -> list[Fact]:
    """Where it acted, what came of it, and how much it took."""
    world = record.last("world")
    found = []
    if world is not None and world.text("env"):
        num = world.number("num_envs") or 1
        found.append(Fact("Environment", world.text("env"), f"{num:,.0f} side by side" if num > 1 else ""))
    found += _return_facts(record)
    for words, curve in (("Estimate", _estimate(record)), ("Error", record.curve("error"))):
        if len(curve):
            found.append(Fact(words, f"{curve.values[-1]:.4g}", "last step"))
    steps = env_steps(record)
    if len(steps):
        found.append(Fact("Environment steps", count(float(steps.values[-1]))))
    speed = record.curve("steps_per_second").values
    if len(speed):
        found.append(Fact("Environment steps a second", count(float(np.median(speed))), "median"))
    return found


def env_steps(record: Record) -> Curve:
    """Steps of the environment so far."""
    total, each = record.curve("total_env_steps"), record.curve("env_steps")
    return total if len(total) else Curve(each.steps, each.values.cumsum())


def _return_facts(record: Record) -> list[Fact]:
    held_out, spread = record.curve("held_out_return"), record.curve("held_out_return_std")
    if not len(held_out):
        train = record.curve("return")
        return [Fact("Return", f"{train.values[-1]:.4g}", "last episodes of training")] if len(train) else []
    last, best = float(held_out.values[-1]), float(held_out.values.max())
    around = f" ± {spread.values[-1]:.3g}" if len(spread) else ""
    at = int(held_out.steps[held_out.values.argmax()])
    note = f"best {best:.4g} at step {at:,}" if f"{best:.4g}" != f"{last:.4g}" else "its best"
    return [Fact("Held-out return", f"{last:.4g}{around}", note)]


def judge_acting(record: Record) -> Fit:
    """Whether it learned, by its error where what is sought is known, and else by its returns."""
    error = record.curve("error")
    if len(error) and (error.values >= 0).all():
        return judge_error(error, "error")
    model = record.last("model")
    if model is not None and model.text("goal") == "prediction":
        return Fit("not measured", "A given policy is valued, which changes none of its returns: see its values.")
    held_out, train = record.curve("held_out_return"), record.curve("return")
    if not len(held_out) and not len(train):
        return Fit("not measured", "No return has been measured, and no error is known.")
    return judge_returns(train, held_out)


def acting_charts(record: Record) -> list[Chart | None]:
    """Returns first; then what the method itself measures, whatever that is."""
    curve = record.curve
    drawn = [
        returns_chart(curve("return"), curve("held_out_return"), curve("held_out_return_std")),
        estimate_chart(_estimate(record), _root(record)),
        metric_chart(
            "length",
            "Episode length",
            curve("episode_length"),
            "Steps of the environment, on the mean.",
            from_zero=True,
        ),
        _loss(curve("loss")),
    ]
    names = [*_METRICS, *_others(record)]
    drawn += [_metric(record, name) for name in names]
    speed = "Of all environments together, learning included."
    speeds = curve("steps_per_second")
    drawn.append(metric_chart("speed", "Environment steps a second", speeds, speed, from_zero=True))
    return drawn


def world_facts(record: Record) -> tuple[Fact, ...]:
    """What the environment is, as it was told."""
    world = record.last("world")
    if world is None:
        return ()
    named = (
        *(("env", "Environment"), ("num_envs", "Side by side"), ("observation", "Shows"), ("action", "Takes")),
        *(("states", "States"), ("actions", "Actions")),
    )
    return tuple(Fact(words, world.text(name)) for name, words in named if world.text(name))


def _loss(loss: Curve) -> Chart | None:
    """The method's own; where a sweep left nothing to be mended, that cannot be on a logarithmic axis."""
    caption, done = "What the method makes of its experience.", loss.values == 0
    if done.any() and (loss.values > 0).any() and (loss.values >= 0).all():
        return metric_chart(
            "loss", "Loss", loss.where(~done), f"{caption} Where it is 0 it is left out.", form=".3~g", log=True
        )
    return metric_chart("loss", "Loss", loss, caption, form=".3~g")


def _estimate(record: Record) -> Curve:
    """What was found so far of a number that is sought; of several its first component."""
    estimate = record.curve("estimate")
    return estimate if len(estimate) else record.curve("iterate")


def _metric(record: Record, name: str) -> Chart | None:
    title, caption = _METRICS.get(name, (name.replace("_", " ").capitalize(), ""))
    values, log = record.curve(name), name in _LOGARITHMIC
    if log:
        values = values.where(values.values > 0)
    plain = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)
    return metric_chart(f"metric-{plain}", title, values, caption, form=".3~g", noisy=not log, log=log)


def _others(record: Record) -> list[str]:
    """What a method records that this report has no words for."""
    seen: dict[str, None] = {}
    for row in record.rows:
        for name in row:
            if name not in _ELSEWHERE and name not in _METRICS and not name.startswith("held_out_"):
                seen.setdefault(name)
    return [name for name in seen if len(record.curve(name))][:_MOST_OTHERS]


def _root(record: Record) -> float | None:
    """What an estimate is to find, where the world or the rows tell."""
    world, rows = record.last("world"), record.curve("root")
    told = as_number(as_mapping(world.fields).get("root")) if world else None
    return told if told is not None else float(rows.values[-1]) if len(rows) else None
