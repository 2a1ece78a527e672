"""Small runs: some documents, two models of two blocks, and what a run wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from danlu.batch import Batch
from danlu.build import assemble
from danlu.data import DataSource
from danlu.experiment import Experiment
from danlu.reading import load_recipe

GPT2 = {"name": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
QWEN3 = {
    "name": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
CONTEXT = 32
TIMES = {"seconds", "tokens_per_second", "mfu", "memory_bytes"}
"""What differs between two runs that are equal."""

_WORDS = [
    "the",
    "furnace",
    "burns",
    "low",
    "nine",
    "times",
    "turned",
    "cinnabar",
    "lead",
    "and",
    "mercury",
    "火候",
    "到",
    "naïve",
    "(42)",
]


def document(number: int) -> str:
    """A text that differs from number to number, and in length."""
    words = [_WORDS[(number * 5 + i * i) % len(_WORDS)] for i in range(1 + number * 7 % 40)]
    return f"{number} {' '.join(words)}."


def documents(folder: Path, count: int = 40) -> Path:
    """A JSONL file of so many texts."""
    file = folder / "documents.jsonl"
    lines = [json.dumps({"text": document(i)}, ensure_ascii=False) for i in range(count)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def preferences(folder: Path, count: int = 40) -> Path:
    """A JSONL file of so many prompts, each with an answer that is preferred and one that is not."""
    file = folder / "pairs.jsonl"
    rows = []
    for number in range(count):
        words = document(number).split()
        cut = 1 + len(words) // 4
        prompt, chosen, rejected = words[:cut], words[cut : cut + 7] or words, words[::-1][: 1 + number % 5]
        answers = {"chosen": " " + " ".join(chosen), "rejected": " " + " ".join([*rejected, "no"])}
        rows.append(json.dumps({"prompt": " ".join(prompt), **answers}, ensure_ascii=False))
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return file


def recipe(folder: Path, model: dict[str, Any] | None = None, *, out: str = "run", **run: Any) -> dict[str, Any]:
    """A recipe over documents in a folder: twelve updates of five samples, unless `run` says otherwise."""
    return {
        "model": model or GPT2,
        "method": "next_token",
        "data": {
            "train": str(documents(folder)),
            "held_out": 0.2,
            "vocab_size": 300,
            "context": CONTEXT,
            "step_samples": 5,
            "cache": str(folder / "cache"),
        },
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "run": {
            **({} if "epochs" in run else {"steps": 12}),
            "out": str(folder / out),
            "device": "cpu",
            "threads": 1,
            "pack_tokens": 64,
            **run,
        },
    }


def preferring(folder: Path, method: Any, model: dict[str, Any] | None = None, **run: Any) -> dict[str, Any]:
    """A recipe over pairs in a folder, in packs of a few of them."""
    made = recipe(folder, model or QWEN3, **{"pack_tokens": 128, **run})
    made["method"] = method
    made["data"] |= {"train": str(preferences(folder)), "context": 64}
    return made


def experiment(recipe: dict[str, Any], *overrides: str) -> Experiment:
    """Its parts, nothing trained."""
    return assemble(load_recipe(recipe, overrides))


def source(parts: Experiment) -> DataSource:
    """What it draws from, from the beginning."""
    return parts.data.source(parts.recipe.data, seed=parts.recipe.run.seed, epochs=parts.recipe.run.epochs)


def groups(parts: Experiment, steps: int = 1) -> list[list[Batch]]:
    """The groups of its first steps."""
    method, drawn = parts.recipe.method, source(parts)
    return [[method.group(sample) for sample in method.matched(drawn.draw())] for _ in range(steps)]


def lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, every line of it sound."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def rows(run: Path) -> list[dict[str, Any]]:
    """What a run measured, without what it took."""
    return [{k: v for k, v in row.items() if k not in TIMES} for row in lines(run / "metrics.jsonl")]


def steps(run: Path) -> list[int]:
    """The steps that a run measured."""
    return [row["step"] for row in lines(run / "metrics.jsonl")]


def checkpoints(run: Path) -> list[int]:
    """The steps that a run has checkpoints of."""
    return sorted(int(folder.name.removeprefix("step-")) for folder in (run / "checkpoints").glob("step-*"))


def step_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return run / "checkpoints" / f"step-{step:08d}"


def pointed(run: Path, name: str) -> int:
    """The step that a link points at."""
    return int((run / "checkpoints" / name).readlink().name.removeprefix("step-"))


def weights(run: Path) -> dict[str, Tensor]:
    """The model that came out, or the adapter."""
    (file,) = (run / "final").glob("*.safetensors")
    return load_file(file)


def state(run: Path, step: int) -> dict[str, Tensor]:
    """All tensors of a checkpoint."""
    found = {}
    for file in step_folder(run, step).glob("*.safetensors"):
        found.update({f"{file.stem}/{name}": tensor for name, tensor in load_file(file).items()})
    return found


def assert_same_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To the bit."""
    assert found.keys() == expected.keys()
    assert expected
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def assert_same_run(found: Path, expected: Path) -> None:
    """Equal in weights, to the bit, and in every row of metrics, in order."""
    assert_same_tensors(weights(found), weights(expected))
    assert rows(found) == rows(expected)


def flip(file: Path, offset: int, bit: int = 0) -> None:
    """Change one bit of a file."""
    content = bytearray(file.read_bytes())
    content[offset] ^= 1 << bit
    file.write_bytes(content)


def largest_difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Over all elements of all tensors."""
    return max(float((x.detach() - y.detach()).abs().max()) for x, y in zip(a, b, strict=True))
