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


@pytest.fixture(scope="module")
def compiled_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache of compiled code for all of them, empty at first: what one leaves there is offered to the next."""
    return tmp_path_factory.mktemp("inductor")


@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself
@pytest.mark.parametrize("name", MODELS)
def test_a_compiled_run_has_the_losses_of_a_plain_one(
    tmp_path: Path, compiled_code: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(compiled_code))
    made = recipe(tmp_path, MODELS[name], steps=8, eval_every=2)
    plain = danlu.train(made).path
    fused = danlu.train(made, "run.compile=true", f"run.out={tmp_path / 'fused'}").path
    for found, expected in zip(rows(fused), rows(plain), strict=True):
        for metric in ("loss", "grad_norm", "held_out_loss"):
            where = f"{metric} of step {found['step']}"
            assert found.get(metric, 0) == pytest.approx(expected.get(metric, 0), abs=1e-4), where
