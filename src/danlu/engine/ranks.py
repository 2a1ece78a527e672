"""The processes of a run: how many, which one this is, and how they agree.

`danlu.engine.launch` says which they are; alone, a run is one process and nothing here costs anything. What ranks tell
each other beside gradients goes through one call, `Ranks.gather`, as JSON: counts, sums, a wish to stop, a fault. So
they always agree on what comes next, and none waits for one that went another way.

A fault of one rank is told in place of what the others expect of it next (`Ranks.together`). So whatever only some of
them do, and may fail at, comes before a `gather` and never right before another collective.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from danlu.engine.guards.words import listed
from danlu.engine.pulse import Pulse
from danlu.errors import DanluError, RunError, error_named, name_of

T = TypeVar("T")

PATIENCE = timedelta(hours=1)
"""How long a rank waits for the others, who may be reading much data or writing a large model."""
_LAST_WORDS = timedelta(minutes=2)
"""How long one that has a fault to tell waits for them."""
_BETWEEN = re.compile(r"gloo|nccl|peer|connect|socket|timed out|timeout|process group", re.IGNORECASE)
"""What errors are about that arise between ranks."""
_PLACE = re.compile(r"^\[[^]]*\] *")
"""Where in its own source a library says that something went wrong."""
_ROOM = 4096
"""Bytes of what ranks usually tell each other; more takes a second round."""


class LostError(RunError):
    """The others are gone, or do not answer: nothing can be agreed with them any more."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run.

    Attributes:
        rank: which one this is, from 0.
        size: how many there are.
        local_rank: which one of those on this machine it is.
        local_size: how many are on this machine.
        patience: how long it waits for the others.
        group: what they talk through; None is that of the whole run.
        pulse: what tells those that are gone from those that wait; None where nothing does.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    patience: timedelta = field(default=PATIENCE, compare=False, repr=False)
    group: dist.ProcessGroup | None = field(default=None, compare=False, repr=False)
    pulse: Pulse | None = field(default=None, compare=False, repr=False)

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes down what all of them know."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, as JSON carries it, in the order of ranks; floats keep every bit.

        Raises:
            LostError: when a rank is gone.
            DanluError: when one has a fault to tell instead (`together`).
        """
        return [value] if self.size == 1 else self._told([value], self.patience)

    def first(self, value: Any) -> Any:
        """Rank 0's value, as JSON carries it."""
        return self.gather(value if self.leads else None)[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within, a fault of one rank is a fault of all, in the same words: the others raise it when next they gather.

        Raises:
            DanluError: the first rank's that failed.
        """
        try:
            with self.lost():
                yield
        except LostError:
            raise
        except DanluError as error:
            if not error.told:
                self._tell(error)
            raise
        except Exception as error:  # no fault that is known: the others cannot go on all the same
            reason = (
                f"{type(error).__name__}: {str(error).splitlines()[0][:200]}" if str(error) else type(error).__name__
            )
            with suppress(DanluError):
                self._tell(RunError(f"rank {self.rank} failed: {reason}", do="See its traceback."))
            raise

    def _tell(self, fault: DanluError) -> None:
        """Give the others a fault in place of what they expect; raises the first rank's, where several have one."""
        if self.size > 1:
            with suppress(LostError):  # then its own words are the ones to tell
                words = [name_of(fault), fault.what, fault.where, fault.do]
                self._told([None, words], min(_LAST_WORDS, self.patience))

    def each(self, act: Callable[[], T]) -> list[T]:
        """What an act gives on every rank, as JSON carries it; its error on one is an error on all, in the same words.

        Raises:
            DanluError: the first rank's that failed.
        """
        with self.together():
            result = act()
        return self.gather(result)

    def lead(self, act: Callable[[], T]) -> T:
        """What rank 0 makes of an act that is done once, as JSON carries it; its error is every rank's.

        Raises:
            DanluError: when rank 0 does.
        """
        return self.each(act if self.leads else _nothing)[0]

    def wait(self) -> None:
        """Go on when all ranks are here."""
        self.gather(None)

    def apart(self) -> Ranks:
        """The same ranks through a group of their own, for a thread that talks while others do; all ask for it at once.

        Raises:
            RunError: when a rank is gone.
        """
        if self.size == 1:
            return self
        with self.lost():
            return replace(self, group=dist.new_group(backend="gloo", timeout=self.patience))

    @contextmanager
    def one_by_one(self) -> Iterator[None]:
        """Within, first rank 0 of a machine alone, then all others: what it left in a cache is there for them."""
        if self.local_rank:
            self.wait()
            yield
        else:
            with self.together():
                yield
            self.wait()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Within, the ranks of a machine come one after another: what each needs for a moment is there once."""
        turns = max(self.gather(self.local_size))
        for _ in range(self.local_rank):
            self.wait()
        with self.together():
            yield
        for _ in range(turns - self.local_rank):
            self.wait()

    def _told(self, message: list[Any], patience: timedelta) -> list[Any]:
        """Every rank's value, of messages that are a value, or nothing and a fault."""
        told = json.dumps(message).encode()
        head = len(told).to_bytes(8, "little")
        with self.lost():
            every = self._exchange((head + told)[:_ROOM].ljust(_ROOM), patience)
            lengths = [int.from_bytes(each[:8], "little") for each in every]
            if max(lengths) + 8 <= _ROOM:
                every = [each[8:] for each in every]
            else:
                every = self._exchange(told.ljust(max(lengths)), patience)
        messages = [json.loads(each[:n]) for each, n in zip(every, lengths, strict=True)]
        for _, *faults in messages:
            for name, what, where, do in faults:
                error = error_named(name)(what, where=where, do=do)
                error.told = True
                raise error
        return [value for (value,) in messages]

    def _exchange(self, told: bytes, patience: timedelta) -> Sequence[bytes]:
        """Every rank's bytes, of which all have equally many."""
        mine = torch.frombuffer(bytearray(told), dtype=torch.uint8)
        all_of_them = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(all_of_them, mine, group=self.group, async_op=True).wait(patience)
        return [each.numpy().tobytes() for each in all_of_them]

    @contextmanager
    def lost(self) -> Iterator[None]:
        """Within, what goes wrong between ranks is told as a loss of the others."""
        try:
            yield
        except (RuntimeError, dist.DistError) as error:
            if self.size == 1 or not (isinstance(error, dist.DistError) or _BETWEEN.search(str(error))):
                raise
            reason = _PLACE.sub("", str(error).splitlines()[0]).split(". ")[0][:200]
            raise self._loss(reason) from error

    def _loss(self, reason: str) -> LostError:
        gone = [] if self.pulse is None else [rank for rank in self.pulse.silent() if rank != self.rank]
        if not gone:
            do = "See which rank ended first, and why; the last checkpoint is whole."
            return LostError(f"rank {self.rank} lost the others: {reason}", do=do)
        what = f"rank {self.rank} lost rank {listed(gone, 8)}, which gives no sign of life: {reason}"
        return LostError(what, do="See what became of it: it ended, or hangs; the last checkpoint is whole.")


def _nothing() -> Any:
    return None


ALONE = Ranks()
"""A run of one process."""
