"""A ring of threads: ring attention without processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import Queue
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

R = TypeVar("R")
PATIENCE = 20.0
"""Seconds a rank waits for its neighbour."""


@dataclass
class ThreadRing:
    """One rank of several in this process."""

    rank: int
    size: int
    queues: Sequence[Queue[Tensor]]
    sent: list[tuple[int, ...]] = field(default_factory=list)

    def hand_on(self, given: Tensor, taken: Tensor) -> Callable[[], None]:
        self.sent.append(tuple(given.shape))
        self.queues[(self.rank + 1) % self.size].put(given.detach().clone())

        def wait() -> None:
            taken.copy_(self.queues[self.rank].get(timeout=PATIENCE))

        taken.fill_(torch.nan)  # nobody may look at it before it is there
        return wait


def in_a_ring(size: int, function: Callable[[ThreadRing], R]) -> list[R]:
    """What each rank makes of the function."""
    queues: list[Queue[Tensor]] = [Queue() for _ in range(size)]
    start = Barrier(size)

    def run(rank: int) -> R:
        torch.set_num_threads(1)
        start.wait(PATIENCE)
        return function(ThreadRing(rank, size, queues))

    with ThreadPoolExecutor(size) as pool:
        found = list(pool.map(run, range(size)))
    assert all(queue.empty() for queue in queues)
    return found
