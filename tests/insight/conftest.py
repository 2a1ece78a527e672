"""A run directory as training leaves it behind, made without training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

PROMPT = "ROMEO:"
NOISE = "qz;Lx e\nahT,o wsd?E kfm&rne"
SPEECH = "\nO, speak again, bright angel! for thou art\nAs glorious to this night, being o'er my head."
RECIPE = """\
# written resolved
model:
  architecture: llama
  num_layers: 6
  width: 384
method: next-token
adapter: null
data:
  files: [shakespeare.txt]
  held_out: 0.1  # a tenth
  context: 512
optimizer:
  name: adamw
  learning_rate: 0.001
  betas: [0.9, 0.95]
run:
  name: shakespeare
  steps: 2000
  seed: 0
"""


def metric_rows(num_steps: int, *, held_out_every: int, seed: int = 0) -> list[dict[str, object]]:
    """Rows of a run that learns as language models do: a power law, noise, a warm-up, a slow first step."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for step in range(num_steps + 1):
        part = step / num_steps
        true = 1.32 + 2.9 / (1.0 + 40.0 * part) ** 1.1
        row: dict[str, object] = {"step": step}
        if step:
            tokens = int(8192 - rng.integers(0, 300))
            row |= {
                "loss": true + 0.05 * float(rng.normal()),
                "tokens": tokens,
                "samples": 20,
                "packs": 1,
                "seconds": tokens / 61_000,
                "tokens_per_second": 61_000 * (0.35 if step == 1 else 1.0) * (1 + 0.02 * float(rng.normal())),
                "mfu": 0.412 + 0.006 * float(rng.normal()),
                "grad_norm": (0.4 + 2.0 * math.exp(-30 * part)) * math.exp(0.2 * float(rng.normal())),
                "lr": 1e-3 * min(step / (0.05 * num_steps), 0.55 + 0.45 * math.cos(math.pi * part)),
                "memory_bytes": int(3.1 * 2**30 + 2e7 * float(rng.normal())),
                "packing_efficiency": 1 - float(rng.integers(0, 300)) / 8192,
                "total_tokens": 8000 * step,
            }
        if step % held_out_every == 0:
            loss = true + 0.04
            row |= {
                "held_out_loss": loss,
                "held_out_perplexity": math.exp(loss),
                "held_out_bits_per_byte": loss / math.log(2),
            }
        rows.append(row)
    return rows


def event_rows(num_steps: int) -> list[dict[str, object]]:
    """The events of the same run."""
    zero = 1_750_000_000.0
    edges = [0, 16, 32, 64, 128, 256, 512, 1024]
    histogram = {"edges": edges, "counts": [3, 19, 88, 240, 410, 330, 95]}
    lengths = {"documents": 1185, "empty": 2, "too_short": 1, "cut": 14, "tokens": 1_003_854, "samples": 1185}
    sizes = {"bytes": 1_115_394, "files": 1, "held_out_samples": 118, "vocab_size": 65, "length_histogram": histogram}
    rows: list[dict[str, object]] = [
        {"time": zero, "kind": "start"},
        {"time": zero + 2, "kind": "data", **lengths, **sizes},
        {"time": zero + 3, "kind": "model", "architecture": "llama", "parameters": 10_795_776, "trainable": 10_795_776},
    ]
    for tenth in range(11):
        step = num_steps * tenth // 10
        time = zero + 5 + 0.14 * step
        written = NOISE if tenth < 2 else SPEECH[: 30 + 6 * tenth]
        rows.append({"time": time, "kind": "sample", "step": step, "prompt": PROMPT, "text": written})
        rows.append({"time": time, "kind": "checkpoint", "step": step, "path": f"checkpoints/step-{step}"})
        if tenth == 5:
            rows.append({"time": time, "kind": "warning", "message": "The disk is nearly full: 1.2 GiB are left."})
            rows.append({"time": time + 1, "kind": "resume", "step": step})
    ended = {"kind": "end", "step": num_steps, "reason": "all steps done", "seconds": 0.14 * num_steps}
    return [*rows, {"time": zero + 6 + 0.14 * num_steps, **ended}]


VERSIONS = {
    "danlu": "0.1.0",
    "python": "3.11.7",
    "torch": "2.11.0",
    "platform": "Linux",
    "device": {"name": "A100", "kind": "cuda", "peak_flops": 3.12e14, "memory_bytes": 80 * 2**30, "threads": 8},
    "precision": "bf16",
    "seed": 0,
}

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Makes a run directory: `make_run(num_steps=..., recipe=..., events=..., metrics=...)`."""

    def make(
        *,
        num_steps: int = 2000,
        recipe: str = RECIPE,
        metrics: list[dict[str, object]] | None = None,
        events: list[dict[str, object]] | None = None,
    ) -> Path:
        run = tmp_path / "run"
        run.mkdir()
        rows = metric_rows(num_steps, held_out_every=max(num_steps // 20, 1)) if metrics is None else metrics
        events = event_rows(num_steps) if events is None else events
        for name, lines in (("metrics.jsonl", rows), ("events.jsonl", events)):
            (run / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        (run / "recipe.yaml").write_text(recipe, encoding="utf-8")
        (run / "versions.json").write_text(json.dumps(VERSIONS), encoding="utf-8")
        return run

    return make
