"""From whatever learns, and what it learns from, to the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from danlu.contracts import Source
from danlu.engine.checkpoint import Checkpoints
from danlu.engine.device import Device
from danlu.engine.guarding import Guards
from danlu.engine.guards.clock import Clock
from danlu.engine.guards.config import GuardConfig
from danlu.engine.guards.repeats import Repeats
from danlu.engine.history import History
from danlu.engine.learner import Learner
from danlu.engine.loop import Loop, Plan
from danlu.engine.record import Recorder
from danlu.engine.schedule import Schedule
from danlu.recipe import Reading, Running

Shown = Iterable[tuple[str, Mapping[str, Any]]]
"""What a person may look at: kinds of events and their fields."""
_MEASUREMENTS = 10
"""In a run, where it is not said otherwise."""


def planned(settings: Reading, steps: int, lr: float) -> Plan:
    """When what happens in a run over data.

    Args:
        settings: how the recipe says it runs.
        steps: updates of the whole run, as far as that is known; else 0.
        lr: the highest learning rate.
    """
    every = settings.eval_every or max(1, steps // _MEASUREMENTS)
    return Plan(settings.steps, settings.epochs, every, settings.checkpoint_every or every, lr)


def loop_over(
    learner: Learner,
    source: Source,
    *,
    checkpoints: Checkpoints,
    settings: Running,
    guards: GuardConfig,
    plan: Plan,
    schedule: Schedule,
    device: Device,
    began: float,
    steps: int,
    recorder: Recorder,
    identity: Mapping[str, Any],
    held_out: Callable[[], Iterable[Any]] | None,
    shown: Callable[[History], Shown],
    stopping: Callable[[], str | None],
    again: bool = False,
) -> Loop:
    """The loop over these parts.

    Args:
        learner: moves the weights.
        source: what it learns from.
        checkpoints: where they go.
        settings: how the recipe says it runs.
        guards: what is watched.
        plan: how long, how often.
        schedule: of the learning rate.
        device: where.
        began: when the run was begun to be made, by `time.monotonic`.
        steps: updates of the whole run, as far as that is known; else 0.
        recorder: where measurements go.
        identity: see `History`.
        held_out: what it is measured on; None where there is nothing.
        shown: asked at each measurement for what a person may look at.
        stopping: asked after each update; a reason ends the run there.
        again: whether nobody minds that data are read more than once.
    """
    watching = Guards(
        guards,
        learner,
        Clock(settings.max_time, steps or None, began=began),
        Repeats(plan.epochs or (plan.steps if again else None), steps=plan.steps),
        lambda message, step: recorder.event("warning", step=step, message=message),
    )
    history = History(
        updater=learner,
        source=source,
        guards=watching,
        checkpoints=checkpoints,
        recorder=recorder,
        keep=settings.keep_checkpoints,
        identity=identity,
    )
    return Loop(
        updater=learner,
        source=source,
        held_out=held_out,
        schedule=schedule,
        device=device,
        plan=plan,
        history=history,
        recorder=recorder,
        guards=watching,
        shown=lambda: shown(history),
        stopping=stopping,
    )
