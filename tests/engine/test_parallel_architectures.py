"""Every architecture lies over ranks as it lies on one: the same gradients, whole or sharded, kept or made again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from architecture.bridged import CARRIED, build
from danlu.architecture.bridge import Bridged
from danlu.batch import Batch
from danlu.contracts import SequenceModel
from danlu.engine.launch import launched
from danlu.engine.parallel import Mode, Parallel, choose
from danlu.engine.ranks import ALONE
from danlu.engine.recompute import Recomputed, recompute
from danlu.engine.update import Updater
from danlu.method.next_token import NextToken
from danlu.packed import Packed, Targets
from danlu.registry import lookup
from ranks import run_ranks

OWN: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 23, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "qwen3": {"vocab_size": 23, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "head_dim": 4},
}
CASES: list[tuple[Mode, Recomputed]] = [("ddp", "none"), ("zero1", "full"), ("zero2", "none"), ("zero3", "selective")]
TOLERANCE = 2e-6


def made(kind: str) -> SequenceModel:
    """An architecture with the same weights each time."""
    own, _, name = kind.partition(" ")
    if own == "bridged":
        torch.manual_seed(0)
        return Bridged(build(name))
    config = lookup("architecture", own)(**OWN[own])
    model = config.build()
    config.initialize(model, 0)
    return model


def groups() -> list[Batch]:
    """Documents of different lengths."""
    generator = torch.Generator().manual_seed(1)
    out = []
    for number, length in enumerate((9, 3, 14, 1, 6)):
        tokens = torch.randint(3, 23, (length + 1,), generator=generator)
        packed = Packed.tree([tokens[:-1]], samples=number)
        out.append(Batch(packed, Targets(torch.arange(length), tokens[1:], torch.ones(length)), num_bytes=length))
    return out


def gradients(kind: str, mode: Mode, made_again: Recomputed, parallel: Parallel | None = None) -> dict[str, Tensor]:
    """Of the loss over all documents, two packs a rank."""
    model = made(kind)
    recompute(model, made_again)
    laid = parallel or choose(mode, launched(), model, 1 << 30)
    laid.lay_out(model, torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    updater = Updater({"policy": model}, NextToken(), optimizer, torch.device("cpu"), 16, None, 0, laid)
    mine = groups()[laid.ranks.rank :: laid.ranks.size]
    updater.gradient(mine, 0)
    named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: grad.full_tensor() if mode.startswith("zero") else grad for name, grad in named.items()}


def on_ranks(kinds: list[str]) -> dict[str, dict[str, Tensor] | str]:
    found: dict[str, dict[str, Tensor] | str] = {}
    for kind in kinds:
        for mode, again in CASES:
            found[f"{kind}, {mode}, {again}"] = gradients(kind, mode, again)
    return found


KINDS = [*OWN, *(f"bridged {kind}" for kind in CARRIED)]


@pytest.mark.parametrize("kinds", [KINDS[::2], KINDS[1::2]], ids=["some", "others"])
def test_gradients_are_those_of_one_process(kinds: list[str]) -> None:
    one, other = run_ranks(on_ranks, 2, kinds)
    for kind in kinds:
        expected = gradients(kind, "none", "none", Parallel(ALONE))
        for mode, again in CASES:
            for found in (one, other):
                there = found[f"{kind}, {mode}, {again}"]
                assert there.keys() == expected.keys(), f"{kind}, {mode}"
                for name, gradient in expected.items():
                    difference = float((there[name] - gradient).abs().max())
                    assert difference < TOLERANCE * (1 + float(gradient.abs().max())), f"{kind}, {mode}, {name}"
