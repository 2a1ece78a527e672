"""The helper that other tests run ranks by."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist

from ranks import run_ranks


def summed(start: int) -> tuple[int, int, int]:
    mine = torch.tensor(start + dist.get_rank())
    dist.all_reduce(mine)
    return dist.get_rank(), int(mine), int(os.environ["WORLD_SIZE"])


def second_fails() -> None:
    if dist.get_rank() == 1:
        raise ValueError("the second cannot")
    dist.barrier()


def second_dies() -> None:
    if dist.get_rank() == 1:
        os._exit(3)
    time.sleep(60)


def test_each_rank_answers_in_order() -> None:
    assert run_ranks(summed, 2, 10) == [(0, 21, 2), (1, 21, 2)]


def test_a_fault_is_raised_here_and_nobody_is_waited_for() -> None:
    with pytest.raises(AssertionError, match=r"rank 1 failed:(.|\n)*the second cannot"):
        run_ranks(second_fails, 2)
    with pytest.raises(AssertionError, match="rank 1 ended without a word"):
        run_ranks(second_dies, 2)
