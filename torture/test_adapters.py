"""Adapters on two ranks, in every way that weights may lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapter.test_runs_in_front import ADAPTERS, FEW, MODELS, RING, same_on_two_ranks

SHORT = ("run.pack_tokens=33", "data.step_samples=5")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", ADAPTERS)
def test_all_ways_are_one(kind: str, model: str, tmp_path: Path) -> None:
    modes = [f"run.parallel={mode}" for mode in ("ddp", "zero1", "zero2", "zero3")]
    same_on_two_ranks(tmp_path, [model], [kind], [(mode, *load) for mode in modes for load in (SHORT, FEW, RING)])
