"""Activations that are made again: to the bit what they were, and no product made twice where products are kept."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .runs import GPT2, QWEN3, experiment, groups, recipe

MODELS = {
    "gpt2": {**GPT2, "attn_pdrop": 0.2, "resid_pdrop": 0.1},
    "qwen3": {**QWEN3, "hidden_dropout": 0.1, "attention_dropout": 0.2},
}


class Counted(TorchDispatchMode):
    """Counts operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.name().split(".")[0]] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_gradients_are_the_same_to_the_bit(tmp_path: Path, model: str, mode: str) -> None:
    made = recipe(tmp_path, MODELS[model])
    found = {}
    for each in ("none", mode):
        parts = experiment(made, f"run.recompute={each}")
        (step,) = groups(parts)
        with Counted() as counted:
            parts.updater().gradient(step, 3)
        found[each] = [p.grad for p in parts.policy.parameters()], counted.calls
    (kept, calls), (again, calls_again) = found["none"], found[mode]
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    products = [sum(n for name, n in c.items() if name in ("aten::mm", "aten::addmm")) for c in (calls, calls_again)]
    attention = [sum(n for name, n in c.items() if "attention" in name) for c in (calls, calls_again)]
    if mode == "selective":
        assert products[0] == products[1]
        assert attention[0] == attention[1]
        assert sum(calls_again.values()) > sum(calls.values())  # all else was made twice
    else:
        assert products[1] > products[0]
        assert attention[1] > attention[0]


def test_nothing_is_kept_for_a_pass_that_takes_no_gradient(tmp_path: Path) -> None:
    plain, again = (experiment(recipe(tmp_path), f"run.recompute={mode}") for mode in ("none", "full"))
    assert plain.updater().measure(plain.held_out()) == again.updater().measure(again.held_out())
    assert plain.continuations() == again.continuations()


def test_full_keeps_less_between_forward_and_backward(tmp_path: Path) -> None:
    sizes = {}
    for mode in ("none", "full"):
        parts = experiment(recipe(tmp_path, QWEN3, pack_tokens=1000), f"run.recompute={mode}", "data.step_samples=16")
        (step,) = groups(parts)
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            batch = next(parts.updater().packs(step))
            parts.recipe.method.loss({"policy": parts.policy}, batch)
        sizes[mode] = sum(kept.values())
    assert sizes["full"] < 0.5 * sizes["none"]
