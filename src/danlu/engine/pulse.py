"""Signs of life: what tells a rank that is gone, or was stopped, from those that only wait for it.

A rank that waits in vain cannot know for whom. So a thread of every rank counts on in a store that all of them see, as
long as its process runs; who is lost is whose count stands still.
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress

import torch.distributed as dist

_BEAT = 1.0
"""Seconds between two signs of life."""
_WATCHED = 4 * _BEAT
"""For how long one must give none to be called silent."""
_SILENT = "silent"


class Pulse:
    """Shows the other ranks that this process runs, and sees which of theirs do not.

    Args:
        store: what all of them see; nobody else may use this client of it.
        rank: which one this is.
        size: how many there are.
    """

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self._store, self._rank = store, rank
        self._keys = [f"pulse-{rank}" for rank in range(size)]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="pulse", daemon=True)
        self._store.set(self._keys[rank], "0")
        self._thread.start()

    def close(self) -> None:
        """Give no more signs."""
        self._over.set()
        self._thread.join(2 * _BEAT)

    def silent(self) -> list[int]:
        """The ranks that give no sign of life, in order; it takes a few seconds to see.

        Whoever looks first decides for all: by the time that the next one looks, the first may have ended, too. None
        are named where the store itself is gone.
        """
        decided: list[int] = []
        with suppress(RuntimeError):
            found = [] if self._store.check([_SILENT]) else self._watched()
            decided = json.loads(self._store.compare_set(_SILENT, "", json.dumps(found)))
        return decided

    def _watched(self) -> list[int]:
        """The ranks whose count stands still while it is watched."""
        before, until = self._store.multi_get(self._keys), time.monotonic() + _WATCHED
        still = {rank for rank in range(len(self._keys)) if rank != self._rank}
        while still and time.monotonic() < until:
            time.sleep(_BEAT / 4)
            now = self._store.multi_get(self._keys)
            still = {rank for rank in still if now[rank] == before[rank]}
        return sorted(still)

    def _go_on(self) -> None:
        count = 0
        with suppress(RuntimeError):  # the launch is ending
            while not self._over.wait(_BEAT):
                count += 1
                self._store.set(self._keys[self._rank], str(count))
