"""Compiled blocks compute what plain ones do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import danlu
from engine.runs import GPT2, QWEN3, recipe, rows

MODELS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "gpt2, other rates": {**GPT2, "attn_pdrop": 0.3, "resid_pdrop": 0.4, "embd_pdrop": 0.0},
    "qwen3": QWEN3,
    "qwen3 with dropout": {**QWEN3, "hidden_dropout": 0.2, "attention_dropout": 0.05},
}


@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself
@pytest.mark.parametrize("name", MODELS)
def test_a_compiled_run_has_the_losses_of_a_plain_one(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an empty cache of compiled code for all of them together, so that one's code may be offered to the next."""
    made = recipe(tmp_path, MODELS[name], steps=4, eval_every=2)
    plain = danlu.train(made).path
    fused = danlu.train(made, "run.compile=true", f"run.out={tmp_path / 'fused'}").path
    for found, expected in zip(rows(fused), rows(plain), strict=True):
        for metric in ("loss", "grad_norm", "held_out_loss"):
            assert found.get(metric, 0) == pytest.approx(expected.get(metric, 0), abs=1e-4), (
                name,
                found["step"],
                metric,
            )
