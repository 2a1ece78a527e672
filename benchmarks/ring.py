"""A long pack shared out over ranks, against the same pack on one: time, and memory a rank."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.common import Facts, MissingError, Spread, child, environment, interleave, mebibytes
from benchmarks.results import Table
from benchmarks.settings import SAME_LOSS, SEED, Options

RANKS = 2
LAYERS = 2
ROWS, QUICK_ROWS = (8192, 16384), (256,)
REPEATS = 3
WARM_UP_ROWS = 64
ONE, RING = "one rank", f"a ring of {RANKS}"


def run(options: Options, scratch: Path) -> list[Table]:
    """Each length on one rank with all threads, and on several ranks with their share of the threads."""
    if options.device != "cpu":
        raise MissingError("it is measured on a CPU, which several ranks can share")
    rows, raw, sound = [], {}, True
    numbers = count()
    for length in QUICK_ROWS if options.quick else ROWS:
        sides: dict[str, Callable[[], list[Facts]]] = {
            name: _side(ranks, length, options, scratch, numbers) for name, ranks in ((ONE, 1), (RING, RANKS))
        }
        found = interleave(sides, options.rounds(REPEATS))
        raw[str(length)] = found
        seconds = {name: [max(rank["seconds"] for rank in turn) for turn in turns] for name, turns in found.items()}
        bytes_ = {name: [max(rank["bytes"] for rank in turn) for turn in turns] for name, turns in found.items()}
        losses = {name: sum(rank["loss"] for rank in turns[0]) for name, turns in found.items()}
        sound &= abs(losses[RING] - losses[ONE]) <= SAME_LOSS * abs(losses[ONE])
        for name in found:
            slower, share = (Spread.ratio(each[name], each[ONE]) for each in (seconds, bytes_))
            rows.append(
                [
                    *(f"{length:,}", name, Spread.of(seconds[name]).show(), f"{slower.median:.2f}"),
                    *(mebibytes(Spread.of(bytes_[name]).median), f"{share.median:.2f}", f"{losses[name] / length:.4f}"),
                ]
            )
    return [Table("Ring attention", _COLUMNS, rows, _notes(options), raw, sound)]


_COLUMNS = ["rows", "side", "s", f"× {ONE}'s time", "MiB a rank", f"× {ONE}'s memory", "nats a token"]


def _notes(options: Options) -> list[str]:
    each = max(1, options.threads // RANKS)
    return [
        f"One causal document; the model's width with {LAYERS} layers, float32, not compiled; forward and backward, "
        f"the slowest rank's; medians of {options.rounds(REPEATS)} (least–most).",
        f"'{ONE}' has {options.threads} threads, '{RING}' {each} a rank; ranks hand on by gloo.",
        f"Memory is the largest resident set during a pass, less what it was before, gradients of the weights already "
        f"there; 1 / {RANKS} of '{ONE}' would be {1 / RANKS:.2f}. What the head holds at a time is the same for all.",
    ]


def _side(ranks: int, length: int, options: Options, scratch: Path, numbers: count[int]) -> Callable[[], list[Facts]]:
    each = replace(options, threads=max(1, options.threads // ranks))
    env = environment(each, scratch)

    def measured() -> list[Facts]:
        store = str(scratch / f"ring-{next(numbers)}")
        given: dict[str, Any] = {"shape": options.shape, "length": length, "ranks": ranks, "store": store}
        with ThreadPoolExecutor(ranks) as pool:
            started = [
                pool.submit(child, measure, env=env, threads=each.threads, rank=r, **given) for r in range(ranks)
            ]
            return [one.result() for one in started]

    return measured


def measure(shape: dict[str, Any], length: int, ranks: int, rank: int, store: str, threads: int) -> Facts:
    """In a child, which is one of several ranks: a pass forward and backward."""
    import resource

    import psutil
    import torch
    import torch.distributed as dist

    from danlu.engine.context import ProcessRing, Ringed
    from danlu.engine.device import keep_freed_memory
    from danlu.engine.ranks import Ranks

    torch.set_num_threads(threads)
    keep_freed_memory()
    dist.init_process_group("gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks)
    model = _model(shape)
    policy = model if ranks == 1 else Ringed(model, ProcessRing.of(Ranks(rank, ranks), dist.group.WORLD))
    _learn(policy, WARM_UP_ROWS)
    before = psutil.Process().memory_info().rss
    dist.barrier()
    start = time.perf_counter()
    loss = _learn(policy, length)
    dist.barrier()
    seconds = time.perf_counter() - start
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    dist.destroy_process_group()
    return {"seconds": seconds, "bytes": most - before, "loss": loss}


def _model(shape: dict[str, Any]) -> Any:
    from danlu.architecture.llama import LlamaConfig

    config = LlamaConfig(**shape | {"num_hidden_layers": LAYERS})
    model = config.build()
    config.initialize(model, SEED)
    return model


def _learn(policy: Any, length: int) -> float:
    """One causal document of random tokens, each predicting the next."""
    import torch

    from danlu.packed import Packed, Targets
    from danlu.parts.readout import Likelihood

    tokens = torch.randint(policy.config.vocabulary, (length + 1,), generator=torch.Generator().manual_seed(SEED))
    targets = Targets(torch.arange(length), tokens[1:], torch.ones(length))
    (sums,) = policy(Packed.tree([tokens[:-1]]), [Likelihood(targets)])
    sums.loss.backward()
    return float(sums.nll)
