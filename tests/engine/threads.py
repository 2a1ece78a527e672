"""Ranks without processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from danlu.engine.ranks import Ranks
from danlu.errors import RunError


class Threads(Ranks):
    """Ranks that are threads of one process, and tell each other through a list."""

    @staticmethod
    def run(size: int, work: Callable[[Ranks], Any]) -> list[Any]:
        """What each rank gives, or raises."""
        board: list[Any] = [None] * size
        barrier = threading.Barrier(size, timeout=30)
        answers: list[Any] = [None] * size

        class Rank(Ranks):
            def _exchange(self, told: bytes, patience: timedelta) -> list[bytes]:
                board[self.rank] = told
                barrier.wait()
                every = list(board)
                barrier.wait()
                return every

        def one(rank: int) -> None:
            try:
                answers[rank] = work(Rank(rank, size))
            except Exception as error:
                answers[rank] = error
                if not isinstance(error, RunError):
                    barrier.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return answers
