from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.engine.guards.skips import Skips
from danlu.engine.guards.spike import Jump, Spike
from danlu.errors import CheckpointError, RunError


def curve(steps: int, seed: int = 0, noise: float = 0.1) -> list[float]:
    """A loss that falls as losses do, with the noise of small updates."""
    generator = np.random.default_rng(seed)
    base = 2.0 + 8.0 * (1 + np.arange(steps) / 20) ** -0.6
    return list(base + noise * generator.standard_t(10, steps))


def test_a_spike_is_seen_where_it_is_and_nowhere_else() -> None:
    for seed in range(20):
        losses = curve(1500, seed)
        losses[700] += 2.5
        watch = Spike(window=128, threshold=10.0)
        assert [step for step, loss in enumerate(losses) if watch.note(loss)] == [700]


def test_the_bound_is_the_median_and_so_many_scaled_deviations() -> None:
    """Against numpy's medians; the scaled deviation of a normal curve is its standard deviation."""
    losses = np.random.default_rng(1).normal(3.0, 0.2, 5000)
    watch = Spike(window=5000, threshold=4.0)
    for loss in losses:
        watch.note(float(loss))
    jump = watch.note(50.0)
    assert jump is not None
    assert jump.usual == np.median(losses)
    assert jump.bound == pytest.approx(np.median(losses) + 4 * 1.4826 * np.median(np.abs(losses - np.median(losses))))
    assert jump.bound == pytest.approx(3.0 + 4 * 0.2, rel=0.02)


def test_nothing_is_a_spike_before_enough_is_known_and_what_comes_to_stay_becomes_usual() -> None:
    watch = Spike(window=16, threshold=5.0)
    assert watch.note(2.0) is None
    assert watch.note(2.1) is None
    assert watch.note(90.0) is None
    for loss in (2.0, 2.1, 1.9, 2.0):
        assert watch.note(loss) is None
    assert watch.note(9.0) is not None
    told = [watch.note(9.0 + 0.01 * i) is not None for i in range(20)]
    assert told[0]
    assert not any(told[12:])


def test_a_flat_curve_and_what_is_not_finite_are_no_spikes() -> None:
    watch = Spike(window=16, threshold=10.0)
    assert [watch.note(1.0) for _ in range(20)] == [None] * 20
    assert watch.note(1.005) is None
    assert watch.note(1.2) == Jump(1.2, 1.0, 1.01)
    for loss in (math.nan, math.inf):
        before = watch.state_dict()
        assert watch.note(loss) is None
        assert watch.state_dict() == before


def test_losses_below_nothing_have_spikes_too() -> None:
    watch = Spike(window=16, threshold=5.0)
    for i in range(16):
        watch.note(-3.0 + 0.01 * (i % 3))
    assert watch.note(-3.2) is None
    assert watch.note(-1.0) is not None


@given(st.integers(0, 60), st.integers(0, 3))
def test_taken_up_again_it_goes_on_as_if_it_had_not_stopped(cut: int, seed: int) -> None:
    losses = curve(60, seed, noise=0.1)
    losses[30] += 3.0
    losses[45] += 1.0
    straight = Spike(window=16, threshold=2.0)
    expected = [straight.note(loss) for loss in losses]
    assert expected[30] is not None
    first, second = Spike(window=16, threshold=2.0), Spike(window=16, threshold=2.0)
    told = [first.note(loss) for loss in losses[:cut]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    told += [second.note(loss) for loss in losses[cut:]]
    assert told == expected
    assert second.state_dict() == straight.state_dict()


def test_a_state_that_is_none_is_refused() -> None:
    for state in ({}, {"losses": 3}, {"losses": ["x"]}):
        with pytest.raises(CheckpointError, match="the losses before the checkpoint are not in it"):
            Spike(window=16, threshold=2.0).load_state_dict(state)


def test_its_sentence_names_the_samples() -> None:
    jump = Jump(9.12345, 2.3, 3.4567)
    assert jump.sentence(120, [f"a.jsonl:{i}" for i in range(1, 6)]) == (
        "step 120 has loss 9.123, where 2.3 is usual and above 3.457 is a spike, "
        "on samples a.jsonl:1, a.jsonl:2, a.jsonl:3 and 2 more"
    )
    assert jump.sentence(120).endswith("is a spike")


def test_a_run_that_skips_most_updates_stops() -> None:
    skips = Skips(2)
    for _ in range(5):
        skips.skipped(3, "why")
        skips.skipped(4, "why")
        skips.taken()
    skips.skipped(5, "why")
    again = Skips(2)
    again.load_state_dict(json.loads(json.dumps(skips.state_dict())))
    again.skipped(6, "why")
    with pytest.raises(
        RunError, match=r"3 updates would be skipped one after another, the last at step 7: it burst\. Lower"
    ):
        again.skipped(7, "it burst")
