"""What tuning a few parameters reaches: a small pretrained model, tuned on GSM8K in several ways."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import inputs as both
from benchmarks import settings
from benchmarks.common import Facts, MissingError, child, environment, say
from benchmarks.results import Table
from benchmarks.settings import Options

PRETRAINING, STEPS = 500, 100
WAYS: dict[str, tuple[Mapping[str, Any] | None, Sequence[float]]] = {
    "all weights": (None, (1e-3, 3e-3)),
    "last layer": ({"name": "freeze", "layers": [-1]}, (1e-3, 3e-3)),
    "biases and norms": ({"name": "freeze", "targets": ["*norm.weight"]}, (1e-2, 3e-2)),
    "LoRA, rank 2": ({"name": "lora", "rank": 2}, (3e-3, 1e-2)),
    "LoRA, rank 8": ({"name": "lora", "rank": 8}, (3e-3, 1e-2)),
    "LoRA, rank 32": ({"name": "lora", "rank": 32}, (3e-3, 1e-2)),
    "DoRA, rank 8": ({"name": "lora", "rank": 8, "dora": True}, (3e-3, 1e-2)),
    "prefix, 10 keys": ({"name": "prefix", "length": 10}, (3e-3, 1e-2)),
    "prompt, 10 tokens": ({"name": "prompt", "length": 10}, (3e-2, 1e-1)),
    "bottleneck, 16 wide": ({"name": "bottleneck", "size": 16}, (3e-3, 1e-2)),
}
"""Each way and the rates it is tried at, of which the better one counts."""
PLOT = Path(__file__).parent.parent / "docs" / "tuning.svg"


def run(options: Options, scratch: Path) -> list[Table]:
    """Pretrain once; then each way at each rate, in a process of its own."""
    if not settings.SHAKESPEARE.is_file():
        raise MissingError(f"there is no {settings.SHAKESPEARE}")
    env = environment(options, scratch, DANLU_CACHE=str(scratch / "tokens"))
    given = {"folder": str(scratch), "threads": options.threads, "quick": options.quick}
    say(" pretraining")
    before = child(pretrain, env=env, rows=str(both.gsm8k()), text=str(settings.SHAKESPEARE), **given)
    found: dict[str, list[Facts]] = {}
    for way, (adapter, rates) in WAYS.items():
        say(f" {way}")
        found[way] = [
            child(tune, env=env, rows=str(both.gsm8k()), adapter=adapter, rate=rate, **given)
            for rate in (rates[:1] if options.quick else rates)
        ]
    best = {way: min(each, key=lambda f: f["loss"]) for way, each in found.items()}
    rows = [["none", "0", "0", f"{before['loss']:.4f}", f"{math.exp(before['loss']):.2f}", "–", "–"]]
    rows += [_row(way, facts) for way, facts in best.items()]
    notes = [
        f"A Qwen3 of {before['parameters'] / 1e6:.2f} M parameters, trained for {PRETRAINING} updates on Shakespeare "
        f"and Python's standard library, then tuned for {STEPS} updates of {settings.STEP_SAMPLES} on GSM8K's answers.",
        "Held-out loss in nats a learned token, on the same tenth of the rows; the better of two learning rates.",
    ]
    columns = ["way", "trained", "share", "held-out loss", "perplexity", "rate", "tokens/s"]
    table = Table("Ways of tuning", columns, rows, notes, {"before": before, **found})
    if not options.quick:
        PLOT.write_text(plot(before["loss"], best), encoding="utf-8")
        PLOT.with_suffix(".md").write_text(page(table), encoding="utf-8")
    return [table]


def page(table: Table) -> str:
    """What came of it, as a page beside the plot."""
    picture = f"![Held-out loss by share trained]({PLOT.name})"
    return f"# What tuning few parameters reaches\n\n{picture}\n\n{table.markdown()}\n"


def _row(way: str, facts: Facts) -> list[str]:
    return [
        *(way, f"{facts['trained']:,}", f"{facts['trained'] / facts['parameters']:.2%}", f"{facts['loss']:.4f}"),
        *(f"{math.exp(facts['loss']):.2f}", f"{facts['rate']:g}", f"{facts['speed']:,.0f}"),
    ]


def pretrain(folder: str, rows: str, text: str, threads: int, quick: bool) -> Facts:
    """In a child: a small model of prose and programs, and its loss on GSM8K before it is tuned."""
    from danlu import train

    shape = {**_SHAPE, **({"hidden_size": 32, "num_hidden_layers": 1} if quick else {})}
    recipe = {
        "model": {"name": "qwen3", **shape},
        "method": "next_token",
        "data": {
            "train": [{"files": text, "weight": 1}, {"files": "${stdlib}/*.py", "weight": 3}],
            "vocab_size": 4096,
            "context": 256,
            "step_tokens": 4096,
        },
        "optimizer": {"lr": 4e-3, "schedule": {"name": "cosine", "warmup": 0.05}},
        "run": {"steps": 4 if quick else PRETRAINING, "threads": threads, "out": f"{folder}/base"},
    }
    train(recipe)
    return tune(folder, rows, None, 0.0, threads, quick)


_SHAPE: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


def tune(folder: str, rows: str, adapter: Mapping[str, Any] | None, rate: float, threads: int, quick: bool) -> Facts:
    """In a child: tune the model, or only measure it where the rate is 0."""
    import shutil

    from danlu import train

    name = Path(folder) / "tuned"
    shutil.rmtree(name, ignore_errors=True)
    overrides = {
        "model": f"{folder}/base/final",
        "adapter": json.dumps(adapter),
        "data.train": rows,
        "data.held_out": 0.1,
        "data.context": 512,
        "data.step_samples": settings.STEP_SAMPLES,
        "optimizer.lr": rate or 1e-9,
        "optimizer.weight_decay": 0.0,
        "optimizer.schedule": json.dumps({"name": "cosine", "warmup": 0.05}),
        "run.steps": (2 if quick else STEPS) if rate else 1,
        "run.epochs": "null",
        "run.eval_every": STEPS,
        "run.threads": threads,
        "run.out": str(name),
    }
    done = train("sft", *(f"{key}={value}" for key, value in overrides.items()))
    events = [json.loads(line) for line in (done.path / "events.jsonl").read_text().splitlines()]
    model = next(event for event in events if event["kind"] == "model")
    measured = [json.loads(line) for line in (done.path / "metrics.jsonl").read_text().splitlines()]
    speeds = sorted(row["tokens_per_second"] for row in measured if "tokens_per_second" in row)
    return {
        "loss": measured[-1 if rate else 0]["held_out_loss"],
        "trained": model["trainable"],
        "parameters": model["parameters"],
        "rate": rate,
        "speed": speeds[len(speeds) // 2],
    }


def plot(before: float, best: Mapping[str, Facts]) -> str:
    """Held-out loss against the share that is trained, on a logarithmic axis, as SVG."""
    width, height, left, low = 760, 420, 60, 360
    shares = {way: facts["trained"] / facts["parameters"] for way, facts in best.items()}
    first = math.floor(math.log10(min(shares.values())))
    losses = [facts["loss"] for facts in best.values()]
    bottom, top = min(losses) - 0.1, max(losses) + 0.1

    def x(share: float) -> float:
        return left + (math.log10(share) - first) / -first * (width - left - 130)

    def y(loss: float) -> float:
        return low - (loss - bottom) / (top - bottom) * (low - 40)

    marks = [f'<text x="{left}" y="24" font-weight="bold">Held-out loss on GSM8K (before tuning: {before:.2f})</text>']
    for power in range(first, 1):
        at = x(10.0**power)
        marks.append(f'<line x1="{at:.1f}" y1="40" x2="{at:.1f}" y2="{low}" stroke="#8884"/>')
        marks.append(f'<text x="{at:.1f}" y="{low + 20}" text-anchor="middle">{100 * 10.0**power:g} %</text>')
    for tenth in range(math.ceil(bottom * 5), math.floor(top * 5) + 1):
        at = y(tenth / 5)
        marks.append(f'<line x1="{left}" y1="{at:.1f}" x2="{width - 130}" y2="{at:.1f}" stroke="#8884"/>')
        marks.append(f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{tenth / 5:.1f}</text>')
    for way, facts in best.items():
        at, up = x(shares[way]), y(facts["loss"])
        marks.append(f'<circle cx="{at:.1f}" cy="{up:.1f}" r="5" fill="#3b82f6"/>')
        marks.append(f'<text x="{at + 8:.1f}" y="{up - 6:.1f}">{way}</text>')
    marks.append(f'<text x="{left}" y="{low + 44}">share of the parameters that is trained</text>')
    body = "\n".join(marks)
    style = 'font-family="sans-serif" font-size="13" fill="#64748b"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {style}>\n{body}\n</svg>\n'
