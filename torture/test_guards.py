"""Guards of a compiled run: its layers are watched although they run as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from danlu.engine.guards.nonfinite import trace_nonfinite
from danlu.parts.compiled import compilation
from engine.runs import QWEN3, experiment, groups, recipe


@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself
def test_a_layer_inside_a_compiled_block_is_named(tmp_path: Path) -> None:
    made = recipe(tmp_path, QWEN3, compile=True)
    with compilation(True):
        parts = experiment(made)
        (step,) = groups(parts)
        updater = parts.updater()
        assert updater.gradient(step, 0)["loss"] < 10
        policy: Any = parts.policy
        policy.layers[0].mlp.up_proj.weight.data.mul_(1e10)
        policy.layers[0].mlp.down_proj.weight.data.mul_(1e38)
        measured = updater.gradient(step, 1)
        assert not torch.isfinite(torch.tensor([measured["loss"], updater.clip()])).all()
        found = trace_nonfinite(updater, step, 1)
        assert (found.cause, found.way, found.layer) == ("samples", "output", "layers.0.mlp.down_proj")
        assert updater.gradient(step, 1)["packs"]  # and it goes on compiled
