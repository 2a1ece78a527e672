"""The processes of a run: how many, which one this is, and how they agree.

`torchrun` starts them and says so in the environment; alone, a run is one process and nothing here costs anything. What
ranks tell each other beside gradients goes through one call, `Ranks.gather`, as JSON: counts, sums, a wish to stop, a
fault. So they always agree on what comes next, and none waits for one that went another way.

A fault of one rank is told in place of what the others expect of it next (`Ranks.together`). So whatever only some of
them do, and may fail at, comes before a `gather` and never right before another collective.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist

from danlu.errors import DanluError, RecipeError, RunError, error_named, name_of

T = TypeVar("T")

PATIENCE = timedelta(hours=1)
"""How long a rank waits for the others, who may be reading much data or writing a large model."""
_LAST_WORDS = timedelta(minutes=2)
"""How long one that has a fault to tell waits for them."""
_WORD = "danlu-word"
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
        group: what they talk through; None is that of the whole run.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    group: dist.ProcessGroup | None = field(default=None, compare=False, repr=False)

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
        return [value] if self.size == 1 else self._told([value], PATIENCE)

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
                self._told([None, [name_of(fault), fault.what, fault.where, fault.do]], _LAST_WORDS)

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
            return replace(self, group=dist.new_group(backend="gloo", timeout=PATIENCE))

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
            raise LostError(
                f"rank {self.rank} lost the others: {reason}",
                do="See which rank ended first, and why; the last checkpoint is whole.",
            ) from error


def _store(ranks: Ranks) -> dist.Store | None:
    """Where ranks find each other; None is the usual place.

    What a lost rank left there in one attempt must not be taken for the next one's.
    """
    attempt = f"danlu-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}-{len(_sessions)}"
    return None if (store := _agents()) is None else dist.PrefixStore(attempt, store)  # type: ignore[attr-defined]


def _agents() -> dist.Store | None:
    """The store of `torchrun`, which outlives an attempt."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(host, port, is_master=False, timeout=PATIENCE)  # type: ignore[attr-defined]


def launch_began() -> float:
    """When the run was begun, as `time.time` tells it: under `torchrun` when that was, however often it begins anew."""
    launched_by_torchrun = "TORCHELASTIC_RESTART_COUNT" in os.environ and not _sessions
    return psutil.Process(os.getppid()).create_time() if launched_by_torchrun else time.time()


def leave_word(word: str) -> None:
    """Tell later attempts of this launch, which `torchrun` makes when a process was lost."""
    if (store := _agents()) is not None:
        store.set(_WORD, word)


def word_left() -> str | None:
    """What an earlier attempt of this launch has told."""
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" and not _sessions
    store = _agents() if again else None
    return None if store is None or not store.check([_WORD]) else store.get(_WORD).decode()


def _nothing() -> Any:
    return None


ALONE = Ranks()
"""A run of one process."""
_sessions: list[Ranks] = []
"""Groups that this process has belonged to, and left."""


def launched() -> Ranks:
    """What `torchrun` says of this process.

    Raises:
        RecipeError: when what the environment says cannot be.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return ALONE
    rank, size, local_rank, local_size = (os.environ.get(name, "") for name in names)
    try:
        ranks = Ranks(int(rank), int(size), int(local_rank or 0), int(local_size or 1))
    except ValueError:
        told = ", ".join(f"{name}={os.environ.get(name)}" for name in names)
        raise RecipeError(f"the environment names no ranks: {told}", do="Start with torchrun.") from None
    if not 0 <= ranks.rank < ranks.size:
        raise RecipeError(f"rank {ranks.rank} is none of {ranks.size}", do="Start with torchrun.")
    return ranks


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Within, this process belongs to its group: by gloo on a CPU, and by the accelerator's own besides.

    Args:
        device: torch's name of the device type.

    Raises:
        RecipeError: when the environment names no sound group.
        RunError: when the others do not come, or are lost.
    """
    ranks = launched()
    if ranks.size == 1 or dist.is_initialized():  # a script of one's own may have begun the group
        yield ranks
        return
    backend = "gloo" if device == "cpu" else f"cpu:gloo,{device}:{dist.get_default_backend_for_device(device)}"
    try:
        dist.init_process_group(backend, store=_store(ranks), rank=ranks.rank, world_size=ranks.size, timeout=PATIENCE)
    except (RuntimeError, ValueError, KeyError, dist.DistError) as error:
        reason = str(error).splitlines()[0][:200]
        raise RunError(f"rank {ranks.rank} could not join the others: {reason}", do="Start with torchrun.") from error
    with ranks.lost():
        yield ranks
    dist.destroy_process_group()  # after a fault it would wait for what others never answer
    _sessions.append(ranks)
