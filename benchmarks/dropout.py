"""Keyed dropout, which depends on no generator's state, against `torch.nn.functional.dropout`."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import Facts, Spread, child, environment, interleave
from benchmarks.results import Table
from benchmarks.settings import PACK_TOKENS, SHAPE, Options

if TYPE_CHECKING:
    from torch import Tensor

REPEATS = 40
FRACTION = 0.1
OURS, PEER = "keyed, compiled", "F.dropout"


def run(options: Options, scratch: Path) -> list[Table]:
    """With memory as a program finds it, and as Danlu's training keeps it."""
    rows, raw = [], {}
    env = environment(options, scratch)
    for kept in (False, True):
        found = child(
            measure,
            env=env,
            device=options.device,
            threads=options.threads,
            repeats=options.rounds(REPEATS),
            kept=kept,
        )
        raw["kept" if kept else "returned"] = found
        for work, sides in found.items():
            for side, seconds in sides.items():
                milliseconds = Spread.of([1e3 * s for s in seconds])
                slower = Spread.ratio(sides[PEER], seconds)
                memory = "kept" if kept else "returned"
                rows.append([memory, work, side, milliseconds.show(), f"{slower.median:.1f}"])
    notes = [
        f"{PACK_TOKENS} x {SHAPE['hidden_size']} float32, p = {FRACTION}; "
        f"medians of {options.rounds(REPEATS)} calls in turn (least–most).",
        "'freed memory': by default glibc returns a large tensor's pages to the system, and the next call faults them "
        "in again, which can cost more than the arithmetic; Danlu's training keeps them.",
    ]
    columns = ["freed memory", "work", "side", "ms", f"× faster than {PEER}"]
    return [Table("Dropout", columns, rows, notes, raw)]


def measure(device: str, threads: int, repeats: int, kept: bool) -> Facts:
    """In a child: seconds of every call, by work and side."""
    import torch
    from torch.nn import functional as F

    from danlu.engine.device import keep_freed_memory
    from danlu.random import dropout

    torch.set_num_threads(threads)
    if kept:
        keep_freed_memory()
    x = torch.randn(PACK_TOKENS, SHAPE["hidden_size"], device=device, requires_grad=True)
    keys = torch.randint(-(2**31), 2**31, (PACK_TOKENS,), device=device).int()
    place = torch.tensor(7, dtype=torch.int32, device=device)
    upstream = torch.randn_like(x)
    keyed = partial(dropout, keys=keys, place=place, p=FRACTION)
    sides: dict[str, Callable[[Tensor], Tensor]] = {
        OURS: partial(torch.compile(dropout, dynamic=True), keys=keys, place=place, p=FRACTION),
        PEER: partial(F.dropout, p=FRACTION),
        "keyed, eager": keyed,
        "F.dropout, compiled": torch.compile(partial(F.dropout, p=FRACTION), dynamic=True),
    }

    def forward(function: Callable[[Tensor], Tensor]) -> float:
        return _seconds(lambda: function(x.detach()), device)

    def both(function: Callable[[Tensor], Tensor]) -> float:
        return _seconds(lambda: torch.autograd.grad(function(x), x, upstream), device)

    found: Facts = {}
    for work, timed in (("forward", forward), ("forward, backward", both)):
        calls = {name: partial(timed, function) for name, function in sides.items()}
        interleave(calls, 3, quiet=True)  # compilation, first touch
        found[work] = interleave(calls, repeats, quiet=True)
    return found


def _seconds(call: Callable[[], Any], device: str) -> float:
    import torch

    wait = torch.accelerator.synchronize if device != "cpu" else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start
