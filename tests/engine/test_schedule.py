from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.engine.schedule import Schedule
from danlu.errors import RecipeError
from danlu.reading import load_recipe
from danlu.registry import exported, lookup

NAMES = [entry.name for entry in exported("schedule")]
TINY = 1e-9

CLOSED: dict[str, list[tuple[dict[str, Any], float, float]]] = {
    "constant": [({"warmup": 0.0}, 0.0, 1.0), ({"warmup": 0.5}, 0.25, 0.5), ({"warmup": 0.5}, 1.0, 1.0)],
    "cosine": [
        ({"warmup": 0.2, "floor": 0.1}, 0.1, 0.5),
        ({"warmup": 0.2, "floor": 0.1}, 0.2, 1.0),
        ({"warmup": 0.2, "floor": 0.1}, 0.4, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2),
        ({"warmup": 0.2, "floor": 0.1}, 0.6, 0.55),
        ({"warmup": 0.0, "floor": 0.0}, 1 / 3, 0.75),
        ({"warmup": 0.2, "floor": 0.1}, 1.0, 0.1),
    ],
    "wsd": [
        ({"warmup": 0.1, "cooldown": 0.4, "floor": 0.2}, 0.05, 0.5),
        ({"warmup": 0.1, "cooldown": 0.4, "floor": 0.2}, 0.1, 1.0),
        ({"warmup": 0.1, "cooldown": 0.4, "floor": 0.2}, 0.6, 1.0),
        ({"warmup": 0.1, "cooldown": 0.4, "floor": 0.2}, 0.8, 0.6),
        ({"warmup": 0.1, "cooldown": 0.4, "floor": 0.2}, 1.0, 0.2),
        ({"warmup": 0.0, "cooldown": 1.0}, 0.25, 0.75),
    ],
}
"""(fields, share of the run, factor); a new schedule adds its own."""


def schedules(name: str) -> st.SearchStrategy[Schedule]:
    """Any schedule of a name."""
    fields = lookup("schedule", name).model_fields
    draw: dict[str, st.SearchStrategy[float]] = {"warmup": st.sampled_from([0.0, 0.02, 0.5])}
    if "floor" in fields:
        draw["floor"] = st.floats(0, 1)
    if "cooldown" in fields:
        draw["cooldown"] = st.floats(0.01, 0.5)
    return st.fixed_dictionaries(draw).map(lambda values: lookup("schedule", name)(**values))


@pytest.mark.parametrize(("name", "case"), [(name, case) for name in NAMES for case in CLOSED.get(name, [None])])
def test_key_points_are_those_of_the_closed_form(name: str, case: tuple[dict[str, Any], float, float] | None) -> None:
    assert case is not None, f"'{name}' is exported: give it points above"
    fields, progress, factor = case
    assert lookup("schedule", name)(**fields).factor(progress) == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_factors_are_shares_without_jumps(name: str) -> None:
    @given(schedules(name), st.floats(0, 1))
    def check(schedule: Schedule, progress: float) -> None:
        here = schedule.factor(progress)
        assert 0 <= here <= 1 + TINY
        assert abs(schedule.factor(min(1.0, progress + TINY)) - here) < 1e3 * TINY

    check()


@pytest.mark.parametrize("name", NAMES)
def test_the_warm_up_rises_in_a_straight_line_to_one_and_nothing_rises_after_it(name: str) -> None:
    @given(schedules(name), st.floats(0, 1), st.floats(0, 1))
    def check(schedule: Schedule, a: float, b: float) -> None:
        if schedule.warmup:
            assert schedule.factor(a * schedule.warmup * (1 - TINY)) == pytest.approx(a, abs=1e-6)
        assert schedule.factor(schedule.warmup) == pytest.approx(1)
        early, late = sorted(schedule.warmup + x * (1 - schedule.warmup) for x in (a, b))
        assert schedule.factor(late) <= schedule.factor(early) + TINY

    check()


def test_past_the_end_stays_the_end() -> None:
    for name in NAMES:
        schedule = lookup("schedule", name)()
        assert schedule.factor(1.7) == schedule.factor(1.0)


def test_a_warm_up_and_a_cooldown_that_overlap_are_refused() -> None:
    made = {"model": "gpt2", "method": "next_token", "data": {"train": "x", "context": 8, "step_samples": 1}}
    made |= {"run": {"steps": 1}, "optimizer": {"name": "adamw", "schedule": {"name": "wsd"}}}
    with pytest.raises(RecipeError, match=r"warmup \(0\.6\) and cooldown \(0\.5\) are more than the run together"):
        load_recipe(made, ["optimizer.schedule.warmup=0.6", "optimizer.schedule.cooldown=0.5"])
    assert load_recipe(made, ["optimizer.schedule.warmup=0.5", "optimizer.schedule.cooldown=0.5"])
